"""The paths of storage pools: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, record
from novacron.control.once import Asked, Outcome
from novacron.control.pools.service import PoolService
from novacron.control.pools.view import PoolView
from novacron.control.store.kinds import POOLS
from novacron.control.store.records import Records
from novacron.model.pool import Pool, PoolDriver
from novacron.wire.rest import pools as wire
from novacron.wire.rest.common import Name, PageOf, Ref

PoolRef = Annotated[Ref, Path(description="Id or name of a storage pool.")]


def router(records: Records, service: PoolService, view: PoolView) -> APIRouter:
    """All paths of storage pools."""
    routes = noun("pools")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: PoolView) -> None:
    @routes.get("/pools", dependencies=[needs("pools.read")], responses=problems(), response_model=PageOf[wire.Pool])
    async def list_pools(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the pool of this name.")] = None,
        driver: Annotated[PoolDriver | None, Query(description="Only pools of this driver.")] = None,
    ) -> Response:
        """One page of storage pools, oldest first, each with what every node found of it."""

        def fits(pool: Pool) -> bool:
            return (
                (name is None or pool.name == name)
                and (driver is None or pool.driver is driver)
                and listed.fits(pool.labels)
            )

        found, more = records.page(POOLS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get("/pools/{pool}", dependencies=[needs("pools.read")], responses=problems(404), response_model=wire.Pool)
    async def get_pool(pool: PoolRef) -> Response:
        """One storage pool, with what every node found of it."""
        stored = records.find(POOLS, pool)
        return record(None, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: PoolService, view: PoolView) -> None:
    @routes.post(
        "/pools",
        dependencies=[needs("pools.create")],
        responses=problems(409),
        response_model=wire.Pool,
        status_code=201,
    )
    async def create_pool(request: Request, body: wire.PoolCreate, once: Asked) -> Response:
        """Make a storage pool known. Every node is asked at once whether it reaches it: see `reach`."""
        return _answer(request, view, await once.perform(POOLS, lambda: service.create(body, once)))

    @routes.patch(
        "/pools/{pool}",
        dependencies=[needs("pools.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Pool,
    )
    async def update_pool(request: Request, pool: PoolRef, body: wire.PoolUpdate, held: IfMatch) -> Response:
        """Change a storage pool. Its options only while nothing lies in it."""
        return _answer(request, view, await service.update(pool, body, held))

    @routes.delete(
        "/pools/{pool}",
        dependencies=[needs("pools.delete")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_pool(pool: PoolRef, held: IfMatch) -> Response:
        """Forget a storage pool in which no volume lies. What is in it on the nodes stays there."""
        await service.delete(pool, held)
        return Response(status_code=204)


def _answer(request: Request, view: PoolView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/pools/{stored.record.id}"} if outcome.status == 201 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
