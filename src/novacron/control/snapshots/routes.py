"""The paths of snapshots: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, record
from novacron.control.images.view import ImageView
from novacron.control.once import Asked, Outcome
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.view import SnapshotView
from novacron.control.store.kinds import IMAGES, SNAPSHOTS, VMS
from novacron.control.store.records import Records
from novacron.errors import InvalidInput, NotFound
from novacron.model.identity import is_id
from novacron.model.snapshot import Snapshot, SnapshotState
from novacron.wire.rest import images as image_wire
from novacron.wire.rest import snapshots as wire
from novacron.wire.rest.common import Name, PageOf, Ref

SnapshotRef = Annotated[Ref, Path(description="Id of a snapshot.")]
VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]

_ACTED: dict[int | str, dict[str, Any]] = {202: {"description": "Under way: watch the record", "model": wire.Snapshot}}


def router(records: Records, service: SnapshotService, view: SnapshotView, images: ImageView) -> APIRouter:
    """All paths of snapshots."""
    routes = noun("snapshots")
    _reading(routes, records, view)
    _writing(routes, service, view)
    _acting(routes, service, view, images)
    return routes


def _reading(routes: APIRouter, records: Records, view: SnapshotView) -> None:
    @routes.get(
        "/snapshots",
        dependencies=[needs("snapshots.read")],
        responses=problems(),
        response_model=PageOf[wire.Snapshot],
    )
    async def list_snapshots(
        listed: Listed,
        vm: Annotated[Ref | None, Query(description="Only snapshots of this VM (id or name).")] = None,
        name: Annotated[Name | None, Query(description="Only snapshots of this name.")] = None,
        state: Annotated[SnapshotState | None, Query(description="Only snapshots in this state.")] = None,
        schedule: Annotated[Ref | None, Query(description="Only those that the schedule of this id took.")] = None,
    ) -> Response:
        """One page of snapshots, oldest first. `parent_id` makes a tree of those of one VM."""
        vm_id = _vm_id(records, vm) if vm else ""

        def fits(snapshot: Snapshot) -> bool:
            return (
                (name is None or snapshot.name == name)
                and (state is None or snapshot.state is state)
                and (schedule is None or snapshot.schedule_id == schedule)
                and listed.fits(snapshot.labels)
            )

        found, more = records.page(SNAPSHOTS, after=listed.after, limit=listed.limit, vm_id=vm_id, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/snapshots/{snapshot}",
        dependencies=[needs("snapshots.read")],
        responses=problems(404),
        response_model=wire.Snapshot,
    )
    async def get_snapshot(snapshot: SnapshotRef) -> Response:
        """One snapshot."""
        stored = records.find(SNAPSHOTS, snapshot)
        return record(None, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: SnapshotService, view: SnapshotView) -> None:
    @routes.post(
        "/vms/{vm}/snapshots",
        dependencies=[needs("snapshots.create")],
        responses=problems(404, 409, 412),
        response_model=wire.Snapshot,
        status_code=202,
    )
    async def create_snapshot(
        request: Request,
        vm: VmRef,
        who: Caller,
        held: IfMatch,
        once: Asked,
        body: wire.SnapshotCreate | None = None,
    ) -> Response:
        """Take a snapshot of all disks of a VM, running or stopped; with memory also of what it has in memory.

        If-Match names revisions of the VM.
        """
        asked = body or wire.SnapshotCreate()
        outcome = await once.perform(SNAPSHOTS, lambda: service.create(vm, asked, who.name, held, once))
        return _answer(request, view, outcome)

    @routes.patch(
        "/snapshots/{snapshot}",
        dependencies=[needs("snapshots.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Snapshot,
    )
    async def update_snapshot(
        request: Request, snapshot: SnapshotRef, body: wire.SnapshotUpdate, held: IfMatch
    ) -> Response:
        """Change a snapshot's name, description or labels."""
        return _answer(request, view, await service.update(snapshot, body, held))

    @routes.delete(
        "/snapshots/{snapshot}",
        dependencies=[needs("snapshots.delete")],
        responses=problems(404, 409, 412),
        response_model=wire.Snapshot,
        status_code=202,
    )
    async def delete_snapshot(request: Request, snapshot: SnapshotRef, who: Caller, held: IfMatch) -> Response:
        """Delete a snapshot, also while its VM runs. Those taken after it stay and become its parent's."""
        return _answer(request, view, await service.delete(snapshot, who.name, held))


def _acting(routes: APIRouter, service: SnapshotService, view: SnapshotView, images: ImageView) -> None:
    @routes.post(
        "/snapshots/{snapshot}/revert",
        dependencies=[needs("snapshots.revert")],
        responses=problems(404, 409, 412, 507) | _ACTED,
        response_model=wire.Snapshot,
        status_code=202,
    )
    async def revert_snapshot(
        request: Request,
        snapshot: SnapshotRef,
        who: Caller,
        held: IfMatch,
        once: Asked,
        body: wire.RevertRequest | None = None,
    ) -> Response:
        """Have its VM go back to it. The VM is ended; from a snapshot with memory it runs on from that moment."""
        start = body.start if body else False
        outcome = await once.perform(SNAPSHOTS, lambda: service.revert(snapshot, who.name, held, once, start=start))
        return _answer(request, view, outcome)

    @routes.post(
        "/snapshots/{snapshot}/export",
        dependencies=[needs("snapshots.export")],
        responses=problems(404, 409, 412),
        response_model=image_wire.Image,
        status_code=202,
    )
    async def export_snapshot(
        request: Request, snapshot: SnapshotRef, held: IfMatch, once: Asked, body: wire.ExportRequest
    ) -> Response:
        """Make an image of a volume as it was; the image is ready when its file is there."""
        outcome = await once.perform(IMAGES, lambda: service.export(snapshot, body, held, once))
        stored = outcome.stored
        where = {"location": f"{PREFIX}/images/{stored.record.id}"}
        return record(request, images.encoded(stored), stored.modified, status=202, headers=where)


def _answer(request: Request, view: SnapshotView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/snapshots/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)


def _vm_id(records: Records, ref: str) -> str:
    if is_id(ref):
        return ref
    try:
        return records.find(VMS, ref).record.id
    except NotFound as missing:
        raise InvalidInput.field("vm", missing.message, "give the id or name of a VM") from missing
