"""The paths of parking a VM and of its copies: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, IfMatch, noun, problems, record
from novacron.control.once import Asked
from novacron.control.store.kinds import VMS
from novacron.control.vms.copies import Copies
from novacron.control.vms.service import VmService
from novacron.control.vms.view import VmView
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Ref

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]


def router(service: VmService, copies: Copies, view: VmView) -> APIRouter:
    """Both paths."""
    routes = noun("vms")

    @routes.post(
        "/vms/{vm}/park",
        dependencies=[needs("vms.park")],
        responses=problems(404, 409, 412) | {202: {"description": "Under way: watch the record", "model": wire.Vm}},
        response_model=wire.Vm,
    )
    async def park_vm(request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked) -> Response:
        """End a running VM and keep its memory, for copies that begin at once where it stood."""
        outcome = await once.perform(VMS, lambda: service.park(vm, who.name, held, once))
        return record(request, view.encoded(outcome.stored), outcome.stored.modified, status=outcome.status)

    @routes.post(
        "/vms/{vm}/copies",
        dependencies=[needs("vms.create")],
        responses=problems(404, 409, 412, 507),
        response_model=wire.VmList,
        status_code=202,
    )
    async def copy_vm(vm: VmRef, body: wire.CopiesCreate, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Make VMs that begin at once as copies of a parked one: all of them, or none."""
        made, status = await copies.create(vm, body, who.name, held, once)
        return Response(view.answered_all(made, once.warnings), status, media_type=JSON)

    return routes
