"""The paths of a VM's disks: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, noun, problems, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import VMS
from novacron.control.vms.disks import DiskService
from novacron.control.vms.view import VmView
from novacron.wire.rest import devices
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Ref

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]
VolumeRef = Annotated[Ref, Path(description="Id or name of a volume.")]

_ACTED: dict[int | str, dict[str, Any]] = {202: {"description": "Under way: watch the record", "model": wire.Vm}}


def router(service: DiskService, view: VmView) -> APIRouter:
    """All paths of disks. Each answers with the VM's record."""
    routes = noun("vms")

    @routes.post(
        "/vms/{vm}/disks",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412, 507) | _ACTED,
        response_model=wire.Vm,
    )
    async def attach_vm_disk(
        request: Request, vm: VmRef, body: devices.DiskIn, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Give a VM one more disk: a volume that exists, or a new empty one. At once while it runs (202).

        A disk attached like this outlives the VM.
        """
        outcome = await once.perform(VMS, lambda: service.attach(vm, body, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.delete(
        "/vms/{vm}/disks/{volume}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def detach_vm_disk(request: Request, vm: VmRef, volume: VolumeRef, who: Caller, held: IfMatch) -> Response:
        """Take a disk away: at once while the VM runs (202). The volume stays, available when the machine let go."""
        return _answer(request, view, await service.detach(vm, volume, who.name, held))

    return routes


def _answer(request: Request, view: VmView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/vms/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
