"""The paths of security groups: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.networks.groups import GroupService
from novacron.control.networks.view import GroupView
from novacron.control.once import Asked
from novacron.control.store.kinds import SECURITY_GROUPS
from novacron.control.store.records import Records
from novacron.model.network import SecurityGroup
from novacron.wire.rest import security_groups as wire
from novacron.wire.rest.common import Name, PageOf, Ref

GroupRef = Annotated[Ref, Path(description="Id or name of a security group.")]


def router(records: Records, service: GroupService, view: GroupView) -> APIRouter:
    """All paths of security groups."""
    routes = noun("security groups")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: GroupView) -> None:
    @routes.get(
        "/security_groups",
        dependencies=[needs("security_groups.read")],
        responses=problems(),
        response_model=PageOf[wire.SecurityGroup],
    )
    async def list_security_groups(
        listed: Listed, name: Annotated[Name | None, Query(description="Only the group of this name.")] = None
    ) -> Response:
        """One page of security groups, oldest first."""

        def fits(group: SecurityGroup) -> bool:
            return (name is None or group.name == name) and listed.fits(group.labels)

        found, more = records.page(SECURITY_GROUPS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/security_groups/{security_group}",
        dependencies=[needs("security_groups.read")],
        responses=reads(404),
        response_model=wire.SecurityGroup,
    )
    async def get_security_group(request: Request, security_group: GroupRef) -> Response:
        """One security group."""
        stored = records.find(SECURITY_GROUPS, security_group)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: GroupService, view: GroupView) -> None:
    @routes.post(
        "/security_groups",
        dependencies=[needs("security_groups.create")],
        responses=problems(409),
        response_model=wire.SecurityGroup,
        status_code=201,
    )
    async def create_security_group(request: Request, body: wire.SecurityGroupCreate, once: Asked) -> Response:
        """Make a group of rules; give it to cards when they are made, or later."""
        outcome = await once.perform(SECURITY_GROUPS, lambda: service.create(body, once))
        stored = outcome.stored
        where = {"location": f"{PREFIX}/security_groups/{stored.record.id}"}
        return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)

    @routes.patch(
        "/security_groups/{security_group}",
        dependencies=[needs("security_groups.update")],
        responses=problems(404, 409, 412),
        response_model=wire.SecurityGroup,
    )
    async def update_security_group(
        request: Request, security_group: GroupRef, body: wire.SecurityGroupUpdate, held: IfMatch
    ) -> Response:
        """Change a group. Its rules count at once for every card in it, also for conversations that go on."""
        stored = (await service.update(security_group, body, held)).stored
        return record(request, view.encoded(stored), stored.modified)

    @routes.delete(
        "/security_groups/{security_group}",
        dependencies=[needs("security_groups.delete")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_security_group(security_group: GroupRef, held: IfMatch) -> Response:
        """Delete a group that no card is in and no rule of another names."""
        await service.delete(security_group, held)
        return Response(status_code=204)
