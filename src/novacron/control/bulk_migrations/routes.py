"""The paths of bulk migrations: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.bulk_migrations.service import BulkMigrationService
from novacron.control.bulk_migrations.view import BulkMigrationView
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import BULK_MIGRATIONS
from novacron.control.store.records import Records
from novacron.model.bulk_migration import BulkMigration, BulkState
from novacron.wire.rest import bulk_migrations as wire
from novacron.wire.rest.common import PageOf, Ref

BulkRef = Annotated[Ref, Path(description="Id of a bulk migration.")]


def router(records: Records, service: BulkMigrationService, view: BulkMigrationView) -> APIRouter:
    """All paths of bulk migrations."""
    routes = noun("bulk migrations")
    _reading(routes, records, view)
    _planning(routes, service, view)
    _writing(routes, service, view)
    _steering(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: BulkMigrationView) -> None:
    @routes.get(
        "/bulk-migrations",
        dependencies=[needs("bulk_migrations.read")],
        responses=problems(),
        response_model=PageOf[wire.BulkMigration],
    )
    async def list_bulk_migrations(
        listed: Listed,
        state: Annotated[BulkState | None, Query(description="Only those in this state.")] = None,
    ) -> Response:
        """One page of bulk migrations, oldest first; without their entries."""

        def fits(bulk: BulkMigration) -> bool:
            return (state is None or bulk.state is state) and listed.fits(bulk.labels)

        found, more = records.page(BULK_MIGRATIONS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.brief(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/bulk-migrations/{bulk_migration}",
        dependencies=[needs("bulk_migrations.read")],
        responses=reads(404),
        response_model=wire.BulkMigration,
    )
    async def get_bulk_migration(request: Request, bulk_migration: BulkRef) -> Response:
        """One bulk migration, VM by VM."""
        stored = records.find(BULK_MIGRATIONS, bulk_migration)
        return record(request, view.encoded(stored), stored.modified)


def _planning(routes: APIRouter, service: BulkMigrationService, view: BulkMigrationView) -> None:
    @routes.post(
        "/bulk-migration-plans",
        dependencies=[needs("bulk_migrations.plan")],
        responses=problems(409),
        response_model=wire.BulkMigrationPlan,
    )
    async def plan_bulk_migration(body: wire.BulkMigrationCreate) -> Response:
        """What a bulk migration would do: who goes where and when, and who cannot. Nothing changes; `start` does it."""
        return Response(view.plan(body, await service.plan(body)), media_type=JSON)

    @routes.get(
        "/nodes/{node}/loss-plan",
        dependencies=[needs("nodes.plan_loss")],
        responses=problems(404),
        response_model=wire.NodeLossPlan,
    )
    async def plan_node_loss(node: Annotated[Ref, Path(description="Id or name of a node.")]) -> Response:
        """Where the VMs of a node could be started again if it were gone, and who finds no room. Nothing changes."""
        return Response(view.loss(service.lose(node)), media_type=JSON)


def _writing(routes: APIRouter, service: BulkMigrationService, view: BulkMigrationView) -> None:
    @routes.post(
        "/bulk-migrations",
        dependencies=[needs("bulk_migrations.create")],
        responses=problems(409),
        response_model=wire.BulkMigration,
        status_code=202,
    )
    async def create_bulk_migration(
        request: Request, body: wire.BulkMigrationCreate, who: Caller, once: Asked
    ) -> Response:
        """Move many VMs, empty a node, or bring back what emptying it took away, as a plan of the same body says."""
        outcome = await once.perform(BULK_MIGRATIONS, lambda: service.create(body, who.name, once))
        return _answer(request, view, outcome)


def _steering(routes: APIRouter, service: BulkMigrationService, view: BulkMigrationView) -> None:
    answers = problems(404, 409, 412) | {202: {"description": "As asked", "model": wire.BulkMigration}}

    @routes.post(
        "/bulk-migrations/{bulk_migration}/pause",
        dependencies=[needs("bulk_migrations.pause")],
        responses=answers,
        response_model=wire.BulkMigration,
    )
    async def pause_bulk_migration(request: Request, bulk_migration: BulkRef, held: IfMatch, once: Asked) -> Response:
        """Begin no more moves; those under way go on."""
        outcome = await once.perform(BULK_MIGRATIONS, lambda: service.pause(bulk_migration, held, once))
        return _answer(request, view, outcome)

    @routes.post(
        "/bulk-migrations/{bulk_migration}/resume",
        dependencies=[needs("bulk_migrations.resume")],
        responses=answers,
        response_model=wire.BulkMigration,
    )
    async def resume_bulk_migration(request: Request, bulk_migration: BulkRef, held: IfMatch, once: Asked) -> Response:
        """Go on after a pause."""
        outcome = await once.perform(BULK_MIGRATIONS, lambda: service.resume(bulk_migration, held, once))
        return _answer(request, view, outcome)

    @routes.post(
        "/bulk-migrations/{bulk_migration}/cancel",
        dependencies=[needs("bulk_migrations.cancel")],
        responses=answers,
        response_model=wire.BulkMigration,
    )
    async def cancel_bulk_migration(request: Request, bulk_migration: BulkRef, held: IfMatch, once: Asked) -> Response:
        """Begin nothing more and take back what can be taken back; what has been moved stays where it is."""
        outcome = await once.perform(BULK_MIGRATIONS, lambda: service.cancel(bulk_migration, held, once))
        return _answer(request, view, outcome)


def _answer(request: Request, view: BulkMigrationView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/bulk-migrations/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
