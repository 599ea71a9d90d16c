"""The paths of VMs: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Records
from novacron.control.vms.service import MAX_CONSOLE_BYTES, VmService
from novacron.control.vms.view import VmView
from novacron.errors import InvalidInput, NotFound
from novacron.model.vm import Vm, VmState, state_of
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Name, PageOf, Ref

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]
Force = Annotated[bool, Query(description="Also when it runs: the machine is ended at once.")]

_ACTED: dict[int | str, dict[str, Any]] = {202: {"description": "Under way: watch the record", "model": wire.Vm}}
_encode = msgspec.json.Encoder().encode


def router(records: Records, service: VmService, view: VmView) -> APIRouter:
    """All paths of VMs."""
    routes = noun("vms")
    _reading(routes, records, service, view)
    _writing(routes, service, view)
    _acting(routes, service, view)
    _stopping(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, service: VmService, view: VmView) -> None:
    @routes.get("/vms", dependencies=[needs("vms.read")], responses=problems(), response_model=PageOf[wire.Vm])
    async def list_vms(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the VM of this name.")] = None,
        state: Annotated[VmState | None, Query(description="Only VMs in this state.")] = None,
        node: Annotated[Ref | None, Query(description="Only VMs on this node (id or name).")] = None,
    ) -> Response:
        """One page of VMs, oldest first."""
        node_id = _node_id(records, node) if node else ""

        def fits(vm: Vm) -> bool:
            return (
                (not node_id or vm.node_id == node_id)
                and (name is None or vm.name == name)
                and listed.fits(vm.labels)
                and (state is None or state_of(vm) is state)
            )

        if node_id or name or state or listed.terms:
            after, limit = listed.after, listed.limit
            found, more = await records.search(
                VMS, after=after, limit=limit, match=fits, labels=listed.exact, node_id=node_id
            )
        else:
            found, more = records.page(VMS, after=listed.after, limit=listed.limit)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get("/vms/{vm}", dependencies=[needs("vms.read")], responses=reads(404), response_model=wire.Vm)
    async def get_vm(request: Request, vm: VmRef) -> Response:
        """One VM."""
        stored = records.find(VMS, vm)
        return record(request, view.encoded(stored), stored.modified)

    @routes.get(
        "/vms/{vm}/console-log",
        dependencies=[needs("vms.console")],
        responses=problems(404, 504),
        response_model=wire.ConsoleLog,
    )
    async def get_vm_console_log(
        vm: VmRef, max_bytes: Annotated[int, Query(ge=1, le=MAX_CONSOLE_BYTES)] = 65536
    ) -> Response:
        """The last bytes its guest wrote to the serial console, read from its node now."""
        found, log = await service.console(vm, max_bytes)
        body = {"vm_id": found.id, "text": log.text, "truncated": log.truncated}
        return Response(_encode(body), media_type="application/json")


def _writing(routes: APIRouter, service: VmService, view: VmView) -> None:
    @routes.post(
        "/vms",
        dependencies=[needs("vms.create")],
        responses=problems(409, 507) | {201: {"description": "Made; it is to stay off", "model": wire.Vm}},
        response_model=wire.Vm,
        status_code=202,
    )
    async def create_vm(request: Request, body: wire.VmCreate, who: Caller, once: Asked) -> Response:
        """Make a VM from an image, and start it unless desired=stopped."""
        return _answer(request, view, await once.perform(VMS, lambda: service.create(body, who.name, once)))

    @routes.patch(
        "/vms/{vm}",
        dependencies=[needs("vms.update")],
        responses=problems(404, 409, 412, 507) | _ACTED,
        response_model=wire.Vm,
    )
    async def update_vm(request: Request, vm: VmRef, body: wire.VmUpdate, who: Caller, held: IfMatch) -> Response:
        """Change a VM. What runs is adjusted as far as it can be; `pending` says what waits for its next start."""
        return _answer(request, view, await service.update(vm, body, who.name, held))

    @routes.delete(
        "/vms/{vm}",
        dependencies=[needs("vms.delete")],
        responses=problems(404, 409, 412),
        response_model=wire.Vm,
        status_code=202,
    )
    async def delete_vm(request: Request, vm: VmRef, who: Caller, held: IfMatch, force: Force = False) -> Response:
        """Delete a stopped VM and its disks; with force also one that runs."""
        return _answer(request, view, await service.delete(vm, who.name, held, force=force))


def _acting(routes: APIRouter, service: VmService, view: VmView) -> None:
    """The verbs. Each answers 202 while the work is under way, 200 when the VM already is so."""

    @routes.post(
        "/vms/{vm}/start",
        dependencies=[needs("vms.start")],
        responses=problems(404, 409, 412, 507) | _ACTED,
        response_model=wire.Vm,
    )
    async def start_vm(request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Start a stopped VM."""
        outcome = await once.perform(VMS, lambda: service.start(vm, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.post(
        "/vms/{vm}/pause",
        dependencies=[needs("vms.pause")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def pause_vm(request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Have a running VM stand still; its memory is kept."""
        outcome = await once.perform(VMS, lambda: service.pause(vm, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.post(
        "/vms/{vm}/resume",
        dependencies=[needs("vms.resume")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def resume_vm(request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Have a paused VM go on."""
        outcome = await once.perform(VMS, lambda: service.resume(vm, who.name, held, once))
        return _answer(request, view, outcome)


def _stopping(routes: APIRouter, service: VmService, view: VmView) -> None:
    """The verbs that end a machine, and say how."""

    @routes.post(
        "/vms/{vm}/stop",
        dependencies=[needs("vms.stop")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def stop_vm(
        request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked, body: wire.StopRequest | None = None
    ) -> Response:
        """Stop a VM: ask its guest and force it at the deadline, or (force) end it at once."""
        how = body or wire.StopRequest()
        outcome = await once.perform(VMS, lambda: service.stop(vm, how, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.post(
        "/vms/{vm}/restart",
        dependencies=[needs("vms.restart")],
        responses=problems(404, 409, 412) | _ACTED,
        response_model=wire.Vm,
    )
    async def restart_vm(
        request: Request, vm: VmRef, who: Caller, held: IfMatch, once: Asked, body: wire.StopRequest | None = None
    ) -> Response:
        """Stop a VM as `stop` does, then start it."""
        how = body or wire.StopRequest()
        outcome = await once.perform(VMS, lambda: service.restart(vm, how, who.name, held, once))
        return _answer(request, view, outcome)


def _answer(request: Request, view: VmView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/vms/{stored.record.id}"} if outcome.status in (201, 202) else None
    body = view.answered(stored, outcome.warnings)
    return record(request, body, stored.modified, status=outcome.status, headers=where)


def _node_id(records: Records, ref: str) -> str:
    try:
        return records.find(NODES, ref).record.id
    except NotFound as missing:
        raise InvalidInput.field("node", missing.message, "give the id or name of a node") from missing
