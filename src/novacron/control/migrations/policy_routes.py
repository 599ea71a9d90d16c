"""The paths of migration policies: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.migrations.policies import PolicyService
from novacron.control.migrations.view import PolicyView
from novacron.control.once import Asked
from novacron.control.store.kinds import POLICIES
from novacron.control.store.records import Records
from novacron.model.policy import Policy
from novacron.wire.rest import policies as wire
from novacron.wire.rest.common import Name, PageOf, Ref

PolicyRef = Annotated[Ref, Path(description="Id or name of a migration policy.")]


def router(records: Records, service: PolicyService, view: PolicyView) -> APIRouter:
    """All paths of migration policies."""
    routes = noun("migration policies")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: PolicyView) -> None:
    @routes.get(
        "/migration-policies",
        dependencies=[needs("migration_policies.read")],
        responses=problems(),
        response_model=PageOf[wire.Policy],
    )
    async def list_migration_policies(
        listed: Listed, name: Annotated[Name | None, Query(description="Only the policy of this name.")] = None
    ) -> Response:
        """One page of migration policies, oldest first."""

        def fits(policy: Policy) -> bool:
            return (name is None or policy.name == name) and listed.fits(policy.labels)

        found, more = records.page(POLICIES, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/migration-policies/{policy}",
        dependencies=[needs("migration_policies.read")],
        responses=reads(404),
        response_model=wire.Policy,
    )
    async def get_migration_policy(request: Request, policy: PolicyRef) -> Response:
        """One migration policy."""
        stored = records.find(POLICIES, policy)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: PolicyService, view: PolicyView) -> None:
    @routes.post(
        "/migration-policies",
        dependencies=[needs("migration_policies.create")],
        responses=problems(409),
        response_model=wire.Policy,
        status_code=201,
    )
    async def create_migration_policy(request: Request, body: wire.PolicyCreate, once: Asked) -> Response:
        """Give goals a name. They count for migrations begun from now on."""
        outcome = await once.perform(POLICIES, lambda: service.create(body, once))
        stored = outcome.stored
        where = {"location": f"{PREFIX}/migration-policies/{stored.record.id}"}
        return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)

    @routes.patch(
        "/migration-policies/{policy}",
        dependencies=[needs("migration_policies.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Policy,
    )
    async def update_migration_policy(
        request: Request, policy: PolicyRef, body: wire.PolicyUpdate, held: IfMatch
    ) -> Response:
        """Change a policy. Migrations under way keep the goals they began with."""
        stored = (await service.update(policy, body, held)).stored
        return record(request, view.encoded(stored), stored.modified)

    @routes.delete(
        "/migration-policies/{policy}",
        dependencies=[needs("migration_policies.delete")],
        responses=problems(404, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_migration_policy(policy: PolicyRef, held: IfMatch) -> Response:
        """Forget a policy. Migrations under way keep the goals they began with."""
        await service.delete(policy, held)
        return Response(status_code=204)
