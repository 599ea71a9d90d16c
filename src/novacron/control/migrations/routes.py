"""The paths of migrations: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import AwareDatetime
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.migrations import plan_view
from novacron.control.migrations.kept_copies import KeptCopies
from novacron.control.migrations.service import MigrationService
from novacron.control.migrations.view import MigrationView
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.control.store.records import Records
from novacron.errors import InvalidInput, NotFound
from novacron.model.identity import is_id
from novacron.model.migration import Migration, MigrationKind, MigrationState, Strategy, Transport, VerifyDisks
from novacron.wire.rest import migration_plans
from novacron.wire.rest import migrations as wire
from novacron.wire.rest.common import PageOf, Ref

MigrationRef = Annotated[Ref, Path(description="Id of a migration.")]


VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]


def router(records: Records, service: MigrationService, kept: KeptCopies, view: MigrationView) -> APIRouter:
    """All paths of migrations."""
    routes = noun("migrations")
    _reading(routes, records, view)
    _planning(routes, records, service)
    _writing(routes, service, view)
    _tidying(routes, kept, view)
    return routes


def _asked(
    vm: VmRef,
    target_node: Annotated[Ref | None, Query(description="Only this node will do; the others are planned too.")] = None,
    kind: Annotated[MigrationKind | None, Query(description="Left out: the engine chooses.")] = None,
    strategy: Annotated[Strategy | None, Query(description="Of a live move. Left out: the engine chooses.")] = None,
    policy: Annotated[Ref | None, Query(description="Goals of this policy, where none is given here.")] = None,
    pool: Annotated[Ref | None, Query(description="Where all its disks are to be after the move.")] = None,
    disk_pool: Annotated[list[str], Query(description="The same for one of them: VOLUME=POOL. Repeatable.")] = [],  # noqa: B006 (FastAPI copies it)
    max_downtime_ms: wire.DowntimeMs | None = None,
    finish_within_s: wire.FinishWithinS | None = None,
    max_slowdown_percent: wire.SlowdownPercent | None = None,
    bandwidth_bytes_per_s: wire.Bandwidth | None = None,
    may_pause: Annotated[bool | None, Query(description="The guest may stand still for what is left.")] = None,
    never_postcopy: Annotated[bool | None, Query(description="Its memory is never on two nodes.")] = None,
    transport: Annotated[
        Transport | None, Query(description="Through the stream proxies; auto: over slow links.")
    ] = None,
    verify_disks: Annotated[
        VerifyDisks | None, Query(description="How disks that were copied are compared afterwards.")
    ] = None,
    starts_at: Annotated[AwareDatetime | None, Query(description="It is to begin no earlier.")] = None,
    now: Annotated[bool | None, Query(description="Whatever the windows of policies.")] = None,
    measure: Annotated[bool, Query(description="Look at what it writes first, which takes a second.")] = True,
) -> wire.MigrationCreate:
    """The query of a plan: the fields of a migration's request."""
    return wire.MigrationCreate(
        vm=vm,
        target_node=target_node,
        kind=kind,
        strategy=strategy,
        policy=policy,
        pool=pool,
        disk_pools=_pairs(disk_pool),
        max_downtime_ms=max_downtime_ms,
        finish_within_s=finish_within_s,
        max_slowdown_percent=max_slowdown_percent,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        may_pause=may_pause,
        never_postcopy=never_postcopy,
        transport=transport,
        verify_disks=verify_disks,
        measure=measure,
        starts_at=starts_at,
        now=now,
    )


def _pairs(told: list[str]) -> dict[str, str]:
    """:raise InvalidInput: one of them is no pair."""
    pairs = {}
    for one in told:
        volume, _, pool = one.partition("=")
        if not volume or not pool:
            raise InvalidInput.field("disk_pool", f"{one!r} is no VOLUME=POOL", "as in web-1-0=fast")
        pairs[volume] = pool
    return pairs


def _planning(routes: APIRouter, records: Records, service: MigrationService) -> None:
    @routes.get(
        "/vms/{vm}/migration-plan",
        dependencies=[needs("migrations.plan")],
        responses=problems(404, 409),
        response_model=migration_plans.MigrationPlan,
    )
    async def plan_migration(asked: Annotated[wire.MigrationCreate, Depends(_asked)]) -> Response:
        """What a migration would do and cost, for every node. Nothing changes; `start` of a node begins just that."""
        made = await service.plan(asked.vm, asked)
        body = plan_view.encoded(records, asked, made, service.not_before(asked, made))
        return Response(body, media_type="application/json")


def _reading(routes: APIRouter, records: Records, view: MigrationView) -> None:
    @routes.get(
        "/migrations",
        dependencies=[needs("migrations.read")],
        responses=problems(),
        response_model=PageOf[wire.Migration],
    )
    async def list_migrations(
        listed: Listed,
        vm: Annotated[
            Ref | None, Query(description="Only migrations of this VM (id, also of a deleted one, or name).")
        ] = None,
        state: Annotated[MigrationState | None, Query(description="Only migrations in this state.")] = None,
    ) -> Response:
        """One page of migrations, oldest first."""
        vm_id = _vm_id(records, vm) if vm else ""

        def fits(migration: Migration) -> bool:
            return (
                (not vm_id or vm_id in (migration.vm_id, migration.vm_name))
                and (state is None or migration.state is state)
                and listed.fits(migration.labels)
            )

        found, more = records.page(MIGRATIONS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/migrations/{migration}",
        dependencies=[needs("migrations.read")],
        responses=reads(404),
        response_model=wire.Migration,
    )
    async def get_migration(request: Request, migration: MigrationRef) -> Response:
        """One migration, with its progress while it runs and its figures for ever."""
        stored = records.find(MIGRATIONS, migration)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: MigrationService, view: MigrationView) -> None:
    @routes.post(
        "/migrations",
        dependencies=[needs("migrations.create")],
        responses=problems(409, 507),
        response_model=wire.Migration,
        status_code=202,
    )
    async def create_migration(request: Request, body: wire.MigrationCreate, who: Caller, once: Asked) -> Response:
        """Move a VM to another node, as `migration-plan` says it. A refusal has changed nothing."""
        return _answer(request, view, await once.perform(MIGRATIONS, lambda: service.create(body, who.name, once)))

    @routes.post(
        "/migrations/{migration}/cancel",
        dependencies=[needs("migrations.cancel")],
        responses=problems(404, 409, 412) | {202: {"description": "Being taken back", "model": wire.Migration}},
        response_model=wire.Migration,
    )
    async def cancel_migration(request: Request, migration: MigrationRef, held: IfMatch, once: Asked) -> Response:
        """Take a migration back, as long as the VM belongs to its source: it goes on running there."""
        return _answer(request, view, await once.perform(MIGRATIONS, lambda: service.cancel(migration, held, once)))

    @routes.post(
        "/migrations/{migration}/set-bandwidth",
        dependencies=[needs("migrations.set_bandwidth")],
        responses=problems(404, 409, 412) | {202: {"description": "Being told its source", "model": wire.Migration}},
        response_model=wire.Migration,
    )
    async def set_migration_bandwidth(
        request: Request, migration: MigrationRef, body: wire.BandwidthChange, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Have a migration go no faster from now on, memory and disks alike, also while it streams."""
        rate = body.bandwidth_bytes_per_s
        outcome = await once.perform(MIGRATIONS, lambda: service.set_bandwidth(migration, rate, who.name, held, once))
        return _answer(request, view, outcome)


def _tidying(routes: APIRouter, kept: KeptCopies, view: MigrationView) -> None:
    @routes.post(
        "/migrations/{migration}/discard-copies",
        dependencies=[needs("migrations.discard_copies")],
        responses=problems(404, 409, 412, 503, 504),
        response_model=wire.Migration,
    )
    async def discard_copies(
        request: Request, migration: MigrationRef, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Delete, for good, the copies of disks that were kept at the source because the target's differ."""
        outcome = await once.perform(MIGRATIONS, lambda: kept.discard(migration, who.name, held, once))
        return _answer(request, view, outcome)


def _answer(request: Request, view: MigrationView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/migrations/{stored.record.id}"} if outcome.status == 202 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)


def _vm_id(records: Records, ref: str) -> str:
    """The VM's id; when there is no such VM (any more), the text itself: its migrations are still listed."""
    if is_id(ref):
        return ref
    try:
        return records.find(VMS, ref).record.id
    except NotFound:
        return ref
