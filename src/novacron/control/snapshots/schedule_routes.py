"""The paths of schedules: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.once import Asked, Outcome
from novacron.control.snapshots.schedules import ScheduleService
from novacron.control.snapshots.view import ScheduleView
from novacron.control.store.kinds import SCHEDULES
from novacron.control.store.records import Records
from novacron.model.snapshot import Schedule
from novacron.wire.rest import snapshots as wire
from novacron.wire.rest.common import Name, PageOf, Ref

ScheduleRef = Annotated[Ref, Path(description="Id or name of a schedule.")]


def router(records: Records, service: ScheduleService, view: ScheduleView) -> APIRouter:
    """All paths of schedules."""
    routes = noun("schedules")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: ScheduleView) -> None:
    @routes.get(
        "/schedules",
        dependencies=[needs("schedules.read")],
        responses=problems(),
        response_model=PageOf[wire.Schedule],
    )
    async def list_schedules(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the schedule of this name.")] = None,
    ) -> Response:
        """One page of schedules, oldest first."""

        def fits(schedule: Schedule) -> bool:
            return (name is None or schedule.name == name) and listed.fits(schedule.labels)

        found, more = records.page(SCHEDULES, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/schedules/{schedule}",
        dependencies=[needs("schedules.read")],
        responses=reads(404),
        response_model=wire.Schedule,
    )
    async def get_schedule(request: Request, schedule: ScheduleRef) -> Response:
        """One schedule."""
        stored = records.find(SCHEDULES, schedule)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: ScheduleService, view: ScheduleView) -> None:
    @routes.post(
        "/schedules",
        dependencies=[needs("schedules.create")],
        responses=problems(409),
        response_model=wire.Schedule,
        status_code=201,
    )
    async def create_schedule(request: Request, body: wire.ScheduleCreate, once: Asked) -> Response:
        """Have snapshots taken by themselves, of all VMs that bear the selector's labels."""
        outcome = await once.perform(SCHEDULES, lambda: service.create(body, once))
        return _answer(request, view, outcome)

    @routes.patch(
        "/schedules/{schedule}",
        dependencies=[needs("schedules.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Schedule,
    )
    async def update_schedule(
        request: Request, schedule: ScheduleRef, body: wire.ScheduleUpdate, held: IfMatch
    ) -> Response:
        """Change a schedule, or pause it."""
        return _answer(request, view, await service.update(schedule, body, held))

    @routes.delete(
        "/schedules/{schedule}",
        dependencies=[needs("schedules.delete")],
        responses=problems(404, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_schedule(schedule: ScheduleRef, held: IfMatch) -> Response:
        """Delete a schedule. The snapshots it took stay."""
        await service.delete(schedule, held)
        return Response(status_code=204)


def _answer(request: Request, view: ScheduleView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/schedules/{stored.record.id}"} if outcome.status == 201 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
