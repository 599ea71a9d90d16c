"""The paths of migration rehearsals: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.once import Asked, Outcome
from novacron.control.rehearsals.service import RehearsalService
from novacron.control.rehearsals.view import RehearsalView
from novacron.control.store.kinds import REHEARSALS
from novacron.control.store.records import Records
from novacron.model.rehearsal import Rehearsal, RehearsalState
from novacron.wire.rest import rehearsals as wire
from novacron.wire.rest.common import PageOf, Ref

RehearsalRef = Annotated[Ref, Path(description="Id of a migration rehearsal.")]


def router(records: Records, service: RehearsalService, view: RehearsalView) -> APIRouter:
    """All paths of migration rehearsals."""
    routes = noun("migration rehearsals")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: RehearsalView) -> None:
    @routes.get(
        "/migration-rehearsals",
        dependencies=[needs("migration_rehearsals.read")],
        responses=problems(),
        response_model=PageOf[wire.Rehearsal],
    )
    async def list_migration_rehearsals(
        listed: Listed,
        vm: Annotated[
            Ref | None, Query(description="Only those of this VM (id or name, also of a deleted one).")
        ] = None,
        state: Annotated[RehearsalState | None, Query(description="Only those in this state.")] = None,
    ) -> Response:
        """One page of migration rehearsals, oldest first."""

        def fits(one: Rehearsal) -> bool:
            mine = vm is None or vm in (one.vm_id, one.vm_name)
            return mine and (state is None or one.state is state) and listed.fits(one.labels)

        found, more = records.page(REHEARSALS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/migration-rehearsals/{rehearsal}",
        dependencies=[needs("migration_rehearsals.read")],
        responses=reads(404),
        response_model=wire.Rehearsal,
    )
    async def get_migration_rehearsal(request: Request, rehearsal: RehearsalRef) -> Response:
        """One migration rehearsal, with its verdict once there is one."""
        stored = records.find(REHEARSALS, rehearsal)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: RehearsalService, view: RehearsalView) -> None:
    @routes.post(
        "/migration-rehearsals",
        dependencies=[needs("migration_rehearsals.create")],
        responses=problems(409, 507),
        response_model=wire.Rehearsal,
        status_code=202,
    )
    async def create_migration_rehearsal(
        request: Request, body: wire.RehearsalCreate, who: Caller, once: Asked
    ) -> Response:
        """Boot a copy of a running VM on another node, look at it and delete it. A refusal has changed nothing."""
        return _answer(request, view, await once.perform(REHEARSALS, lambda: service.create(body, who.name, once)))

    @routes.post(
        "/migration-rehearsals/{rehearsal}/cancel",
        dependencies=[needs("migration_rehearsals.cancel")],
        responses=problems(404, 409, 412) | {202: {"description": "Being cleaned up", "model": wire.Rehearsal}},
        response_model=wire.Rehearsal,
    )
    async def cancel_migration_rehearsal(
        request: Request, rehearsal: RehearsalRef, held: IfMatch, once: Asked
    ) -> Response:
        """Have the copy deleted at once; a verdict that is there already stays."""
        return _answer(request, view, await once.perform(REHEARSALS, lambda: service.cancel(rehearsal, held, once)))

    @routes.delete(
        "/migration-rehearsals/{rehearsal}",
        dependencies=[needs("migration_rehearsals.delete")],
        responses=problems(404, 409, 412),
        status_code=204,
    )
    async def delete_migration_rehearsal(rehearsal: RehearsalRef, held: IfMatch) -> Response:
        """Forget one that has ended."""
        await service.delete(rehearsal, held)
        return Response(status_code=204)


def _answer(request: Request, view: RehearsalView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/migration-rehearsals/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
