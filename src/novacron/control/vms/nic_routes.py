"""The paths of a VM's network cards: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, noun, problems, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import VMS
from novacron.control.vms.nics import NicService
from novacron.control.vms.view import VmView
from novacron.wire.rest import devices
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Ref

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]
NicId = Annotated[Ref, Path(description="Id of one of its network cards.")]

_ACTED: dict[int | str, dict[str, Any]] = {202: {"description": "Under way: watch the record", "model": wire.Vm}}


def router(service: NicService, view: VmView) -> APIRouter:
    """All paths of network cards. Each answers with the VM's record."""
    routes = noun("vms")

    @routes.post(
        "/vms/{vm}/nics",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412, 507) | _ACTED,
        response_model=wire.Vm,
    )
    async def attach_vm_nic(
        request: Request, vm: VmRef, body: devices.NicIn, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Give a VM one more network card: at once while it runs (202), else at its next start."""
        outcome = await once.perform(VMS, lambda: service.attach(vm, body, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.patch(
        "/vms/{vm}/nics/{nic}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def update_vm_nic(
        request: Request, vm: VmRef, nic: NicId, body: devices.NicUpdate, who: Caller, held: IfMatch
    ) -> Response:
        """Change what may pass a card on an overlay network, which counts at once, or its boot order (next start)."""
        return _answer(request, view, await service.update(vm, nic, body, who.name, held))

    @routes.delete(
        "/vms/{vm}/nics/{nic}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def detach_vm_nic(request: Request, vm: VmRef, nic: NicId, who: Caller, held: IfMatch) -> Response:
        """Take a network card away: at once while the VM runs (202). Its addresses are free when it is gone."""
        return _answer(request, view, await service.detach(vm, nic, who.name, held))

    return routes


def _answer(request: Request, view: VmView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/vms/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
