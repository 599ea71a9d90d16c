"""The paths of a VM's CD-ROM drives: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, noun, problems, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import VMS
from novacron.control.vms.media import MediaService
from novacron.control.vms.view import VmView
from novacron.wire.rest import devices
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Ref

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]
MediaId = Annotated[Ref, Path(description="Id of one of its CD-ROM drives.")]

_ACTED: dict[int | str, dict[str, Any]] = {202: {"description": "Under way: watch the record", "model": wire.Vm}}


def router(service: MediaService, view: VmView) -> APIRouter:
    """All paths of drives. Each answers with the VM's record."""
    routes = noun("vms")

    @routes.post(
        "/vms/{vm}/media",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def add_vm_media(
        request: Request, vm: VmRef, body: devices.MediaIn, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Give a VM one more CD-ROM drive, from its next start on."""
        outcome = await once.perform(VMS, lambda: service.add(vm, body, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.patch(
        "/vms/{vm}/media/{media}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def change_vm_media(
        request: Request, vm: VmRef, media: MediaId, body: devices.MediaUpdate, who: Caller, held: IfMatch
    ) -> Response:
        """Put an ISO image into a drive, or (image: null) take out what is in it: at once while the VM runs (202)."""
        return _answer(request, view, await service.load(vm, media, body, who.name, held))

    @routes.delete(
        "/vms/{vm}/media/{media}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def remove_vm_media(request: Request, vm: VmRef, media: MediaId, who: Caller, held: IfMatch) -> Response:
        """Take a CD-ROM drive away, from the VM's next start on."""
        return _answer(request, view, await service.remove(vm, media, who.name, held))

    return routes


def _answer(request: Request, view: VmView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/vms/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
