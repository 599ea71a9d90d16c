"""The paths of networks: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.networks.service import NetworkService
from novacron.control.networks.view import NetworkView
from novacron.control.once import Asked
from novacron.control.store.kinds import NETWORKS
from novacron.control.store.records import Records
from novacron.model.network import Network
from novacron.wire.rest import networks as wire
from novacron.wire.rest.common import Name, PageOf, Ref

NetworkRef = Annotated[Ref, Path(description="Id or name of a network.")]


def router(records: Records, service: NetworkService, view: NetworkView) -> APIRouter:
    """All paths of networks."""
    routes = noun("networks")
    _reading(routes, records, view)
    _writing(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: NetworkView) -> None:
    @routes.get(
        "/networks", dependencies=[needs("networks.read")], responses=problems(), response_model=PageOf[wire.Network]
    )
    async def list_networks(
        listed: Listed, name: Annotated[Name | None, Query(description="Only the network of this name.")] = None
    ) -> Response:
        """One page of networks, oldest first."""

        def fits(network: Network) -> bool:
            return (name is None or network.name == name) and listed.fits(network.labels)

        found, more = records.page(NETWORKS, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/networks/{network}",
        dependencies=[needs("networks.read")],
        responses=reads(404),
        response_model=wire.Network,
    )
    async def get_network(request: Request, network: NetworkRef) -> Response:
        """One network."""
        stored = records.find(NETWORKS, network)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: NetworkService, view: NetworkView) -> None:
    @routes.post(
        "/networks",
        dependencies=[needs("networks.create")],
        responses=problems(409, 507),
        response_model=wire.Network,
        status_code=201,
    )
    async def create_network(request: Request, body: wire.NetworkCreate, once: Asked) -> Response:
        """Make a network that spans the nodes. They hear of it with their first card on it."""
        outcome = await once.perform(NETWORKS, lambda: service.create(body, once))
        stored = outcome.stored
        where = {"location": f"{PREFIX}/networks/{stored.record.id}"}
        return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)

    @routes.patch(
        "/networks/{network}",
        dependencies=[needs("networks.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Network,
    )
    async def update_network(
        request: Request, network: NetworkRef, body: wire.NetworkUpdate, held: IfMatch
    ) -> Response:
        """Change a network; nodes follow at once. Its subnets may change only while no card is on it."""
        stored = (await service.update(network, body, held)).stored
        return record(request, view.encoded(stored), stored.modified)

    @routes.delete(
        "/networks/{network}",
        dependencies=[needs("networks.delete")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_network(network: NetworkRef, held: IfMatch) -> Response:
        """Delete a network that no card is on."""
        await service.delete(network, held)
        return Response(status_code=204)
