"""The paths of links between nodes: measured by hand, and what is known of them. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import Response

from novacron.clock import Clock
from novacron.control.access.guard import needs
from novacron.control.answers import JSON, noun, problems
from novacron.control.migrations.links import Links
from novacron.control.named import named
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import LINKS, NODES
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import InvalidInput, Unavailable
from novacron.model.link import LinkFigure
from novacron.wire.rest import nodes as wire
from novacron.wire.rest.common import Ref

NodeRef = Annotated[Ref, Path(description="Id or name of a node.")]


def router(records: Records, links: Links, clock: Clock) -> APIRouter:
    """All paths of links."""
    routes = noun("nodes")

    @routes.get(
        "/nodes/{node}/links", dependencies=[needs("nodes.read")], responses=problems(404), response_model=wire.LinkList
    )
    async def list_links(node: NodeRef) -> Response:
        """The links from and to a node that were measured for themselves. What moves had is in their figures."""
        node_id = records.find(NODES, node).record.id
        every = (stored.record for stored in records.all(LINKS))
        mine = [one for one in every if node_id in (one.source_node, one.target_node)]
        return _json({"items": [shown(records, clock, one) for one in sorted(mine, key=lambda one: one.id)]})

    @routes.post(
        "/link-probes",
        dependencies=[needs("nodes.probe_link")],
        responses=problems(409),
        response_model=wire.Link,
    )
    async def probe_link(body: wire.LinkProbeCreate, once: Asked) -> Response:
        """Measure the link from one node to another: at most 32 MiB and a second. Unknown: `why` says why."""
        source = named(records, NODES, body.source_node, "source_node").record
        target = named(records, NODES, body.target_node, "target_node").record
        if source.id == target.id:
            raise InvalidInput.field("target_node", "is the same node", "name another one")

        async def probe() -> Outcome:
            figure = await links.probe(source.id, target.id, body.bandwidth_bytes_per_s)
            note = once.note(figure, 200)  # by itself: the figure is as good without it
            revision = await records.commit(*note) if note else records.revision
            return Outcome(Stored(figure, revision), 200)

        try:
            figure: LinkFigure = (await once.perform(LINKS, probe)).stored.record
        except Unavailable as unknown:
            return _json(_unknown(records, source.id, target.id, unknown.message))
        return _json(shown(records, clock, figure))

    return routes


def shown(records: Records, clock: Clock, figure: LinkFigure) -> dict[str, Any]:
    """The shape of wire.rest.nodes.Link."""
    return _ends(records, figure.source_node, figure.target_node) | {
        "measured_at": figure.at,
        "age_s": max(0.0, (clock.wall() - figure.at).total_seconds()),
        "rate_bytes_per_s": figure.rate_bytes_per_s,
        "rtt_ms": figure.rtt_ms,
        "sent_bytes": figure.sent_bytes,
        "is_capped": figure.is_capped,
        "why": "",
    }


def _unknown(records: Records, source_id: str, target_id: str, why: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("measured_at", "age_s", "rate_bytes_per_s", "rtt_ms"))
    return _ends(records, source_id, target_id) | unknown | {"sent_bytes": 0, "is_capped": False, "why": why}


def _ends(records: Records, source_id: str, target_id: str) -> dict[str, Any]:
    return {
        "source_node": records.name(NODES, source_id),
        "source_node_id": source_id,
        "target_node": records.name(NODES, target_id),
        "target_node_id": target_id,
    }


def _json(data: Any) -> Response:
    return Response(msgspec.json.encode(data), media_type=JSON)
