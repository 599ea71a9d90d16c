"""The paths of volumes: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import POOLS, VMS, VOLUMES, Kind
from novacron.control.store.records import Records
from novacron.control.volumes.service import VolumeService
from novacron.control.volumes.view import VolumeView
from novacron.errors import InvalidInput, NotFound
from novacron.model.volume import Volume, VolumeState, state_of
from novacron.wire.rest import volumes as wire
from novacron.wire.rest.common import Name, PageOf, Ref

VolumeRef = Annotated[Ref, Path(description="Id or name of a volume.")]

_UNDER_WAY: dict[int | str, dict[str, Any]] = {
    202: {"description": "Under way: watch the record", "model": wire.Volume}
}


def router(records: Records, service: VolumeService, view: VolumeView) -> APIRouter:
    """All paths of volumes."""
    routes = noun("volumes")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: VolumeView) -> None:
    @routes.get(
        "/volumes", dependencies=[needs("volumes.read")], responses=problems(), response_model=PageOf[wire.Volume]
    )
    async def list_volumes(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the volume of this name.")] = None,
        state: Annotated[VolumeState | None, Query(description="Only volumes in this state.")] = None,
        pool: Annotated[Ref | None, Query(description="Only volumes in this pool (id or name).")] = None,
        vm: Annotated[Ref | None, Query(description="Only volumes attached to this VM (id or name).")] = None,
    ) -> Response:
        """One page of volumes, oldest first. The disks of VMs are among them."""
        pool_id = _id_of(records, POOLS, "pool", pool) if pool else ""
        vm_id = _id_of(records, VMS, "vm", vm) if vm else ""

        def fits(volume: Volume) -> bool:
            return (
                (not pool_id or volume.pool_id == pool_id)
                and (name is None or volume.name == name)
                and (state is None or state_of(volume) is state)
                and listed.fits(volume.labels)
            )

        after, limit = listed.after, listed.limit
        if vm_id:
            found, more = records.page(VOLUMES, after=after, limit=limit, vm_id=vm_id, match=fits)
        else:
            found, more = await records.search(VOLUMES, after=after, limit=limit, match=fits, labels=listed.exact)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/volumes/{volume}", dependencies=[needs("volumes.read")], responses=reads(404), response_model=wire.Volume
    )
    async def get_volume(request: Request, volume: VolumeRef) -> Response:
        """One volume."""
        stored = records.find(VOLUMES, volume)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: VolumeService, view: VolumeView) -> None:
    @routes.post(
        "/volumes",
        dependencies=[needs("volumes.create")],
        responses=problems(409, 507),
        response_model=wire.Volume,
        status_code=202,
    )
    async def create_volume(request: Request, body: wire.VolumeCreate, once: Asked) -> Response:
        """Make a volume: empty, from an image, or from another volume."""
        return _answer(request, view, await once.perform(VOLUMES, lambda: service.create(body, once)))

    @routes.patch(
        "/volumes/{volume}",
        dependencies=[needs("volumes.update")],
        responses=problems(404, 409, 412, 507) | _UNDER_WAY,
        response_model=wire.Volume,
    )
    async def update_volume(
        request: Request, volume: VolumeRef, body: wire.VolumeUpdate, who: Caller, held: IfMatch
    ) -> Response:
        """Change a volume. It may grow, and have other limits, also while a VM runs with it."""
        return _answer(request, view, await service.update(volume, body, who.name, held))

    @routes.delete(
        "/volumes/{volume}",
        dependencies=[needs("volumes.delete")],
        responses=problems(404, 409, 412),
        response_model=wire.Volume,
        status_code=202,
    )
    async def delete_volume(request: Request, volume: VolumeRef, held: IfMatch) -> Response:
        """Delete a volume that is attached to no VM, for good."""
        return _answer(request, view, await service.delete(volume, held))


def _answer(request: Request, view: VolumeView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/volumes/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)


def _id_of(records: Records, kind: Kind[Any], field: str, ref: str) -> str:
    try:
        return str(records.find(kind, ref).record.id)
    except NotFound as missing:
        raise InvalidInput.field(field, missing.message, "give the id or name of one that exists") from missing
