"""The paths of nodes: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import JSON, IfMatch, Listed, noun, page, problems, record
from novacron.control.named import named
from novacron.control.nodes.afterwards import afterwards
from novacron.control.nodes.baseline import cpu_baseline
from novacron.control.nodes.service import NodeService
from novacron.control.nodes.view import NodeView
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Records
from novacron.model.node import Node, NodeState
from novacron.wire.rest import nodes as wire
from novacron.wire.rest.common import Name, PageOf, Ref

NodeRef = Annotated[Ref, Path(description="Id or name of a node.")]


def router(records: Records, service: NodeService, view: NodeView) -> APIRouter:
    """All paths of nodes. There is none to make one: a node joins when its agent dials in."""
    routes = noun("nodes")

    @routes.get("/nodes", dependencies=[needs("nodes.read")], responses=problems(), response_model=PageOf[wire.Node])
    async def list_nodes(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the node of this name.")] = None,
        state: Annotated[NodeState | None, Query(description="Only nodes in this state.")] = None,
    ) -> Response:
        """One page of nodes, oldest first."""

        def fits(node: Node) -> bool:
            return (
                (name is None or node.name == name)
                and (state is None or node.state is state)
                and listed.fits(node.labels)
            )

        found, more = records.page(NODES, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get("/nodes/{node}", dependencies=[needs("nodes.read")], responses=problems(404), response_model=wire.Node)
    async def get_node(node: NodeRef) -> Response:
        """One node. Its ETag is that of what is recorded; what it uses changes without it."""
        stored = records.find(NODES, node)
        return record(None, view.encoded(stored), stored.modified)

    @routes.patch(
        "/nodes/{node}",
        dependencies=[needs("nodes.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Node,
    )
    async def update_node(node: NodeRef, body: wire.NodeUpdate, held: IfMatch) -> Response:
        """Label a node, or cordon it: no new VM is then placed on it, those that run go on running."""
        stored = (await service.update(node, body, held)).stored
        return record(None, view.encoded(stored), stored.modified)

    @routes.delete(
        "/nodes/{node}",
        dependencies=[needs("nodes.delete")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_node(node: NodeRef, held: IfMatch) -> Response:
        """Forget a node that is down and owns no VM."""
        await service.delete(node, held)
        return Response(status_code=204)

    _comparing(routes, records)
    return routes


def _comparing(routes: APIRouter, records: Records) -> None:
    @routes.get(
        "/cpu-baseline",
        dependencies=[needs("nodes.read"), needs("vms.read")],
        responses=problems(),
        response_model=wire.CpuBaseline,
    )
    async def get_cpu_baseline(
        without: Annotated[
            list[Ref], Query(description="As if this node (id or name) were gone. Repeatable.", max_length=100)
        ] = [],  # noqa: B006 (FastAPI copies it)
    ) -> Response:
        """What virtual CPU and machine all nodes run, and which VMs are bound to fewer nodes than that."""
        gone = [named(records, NODES, ref, "without").record.id for ref in without]
        nodes = [stored.record for stored in records.all(NODES)]
        vms = (stored.record for stored in records.all(VMS))
        return Response(msgspec.json.encode(cpu_baseline(nodes, vms, gone)), media_type=JSON)

    @routes.post(
        "/cpu-baseline-plans",
        dependencies=[needs("nodes.plan_cpu_baseline"), needs("vms.read")],
        responses=problems(),
        response_model=wire.CpuBaselinePlan,
    )
    async def plan_cpu_baseline(body: wire.CpuChanges) -> Response:
        """Which VMs could go where after these changes: nodes gone, added or renewed, VMs with another CPU model."""
        nodes = [stored.record for stored in records.all(NODES)]
        vms = [stored.record for stored in records.all(VMS)]
        return Response(msgspec.json.encode(afterwards(nodes, vms, body)), media_type=JSON)
