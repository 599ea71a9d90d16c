"""The paths people use: a token for a new node, and the revocation of a node's certificates."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, IfMatch, noun, problems
from novacron.control.joining.service import JoinService
from novacron.control.once import Asked
from novacron.wire.rest import node_identities as wire
from novacron.wire.rest.common import Ref

NodeRef = Annotated[Ref, Path(description="Id or name of a node.")]
_encode = msgspec.json.Encoder().encode


def router(service: JoinService) -> APIRouter:
    routes = noun("nodes")

    @routes.post(
        "/node-tokens",
        dependencies=[needs("nodes.join")],
        responses=problems(409),
        response_model=wire.NodeToken,
        status_code=201,
    )
    async def create_node_token(body: wire.NodeTokenCreate, who: Caller, once: Asked) -> Response:
        """A token with which one node joins the cluster, once and soon. It is shown here and kept nowhere."""
        lasts = datetime.timedelta(seconds=body.lasts_s)
        token, record = await service.make_token(body.node or "", lasts, who.name, once)
        said = {"token": token, "node": record.node or None, "expires_at": record.expires_at}
        return Response(_encode(said), 201, media_type=JSON)

    @routes.post(
        "/nodes/{node}/revoke",
        dependencies=[needs("nodes.revoke")],
        responses=problems(404, 409, 412),
        response_model=wire.NodeRevoked,
    )
    async def revoke_node(node: NodeRef, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Honour no certificate of the node any more: its line ends at once. Its VMs run on."""
        revoked = await service.revoke(node, who.name, held, once)
        return Response(
            _encode({"node_id": revoked.id, "node": revoked.name, "reason": revoked.reason}), media_type=JSON
        )

    return routes
