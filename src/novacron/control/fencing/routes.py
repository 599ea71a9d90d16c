"""The paths of fencing: fence devices, a person's word that a node is off, what HA could do. They decide nothing."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, IfMatch, noun, problems, record
from novacron.control.fencing.service import FencingService
from novacron.control.fencing.status import Status
from novacron.control.once import Asked
from novacron.control.store.shelf import Stored
from novacron.model.fence_device import FenceDevice
from novacron.model.node import Node
from novacron.wire.rest import fencing as wire
from novacron.wire.rest.common import Ref

NodeRef = Annotated[Ref, Path(description="Id or name of a node.")]
_encode = msgspec.json.Encoder().encode


def router(service: FencingService, status: Status) -> APIRouter:
    """All paths of fencing."""
    routes = noun("nodes")

    @routes.get("/ha", dependencies=[needs("nodes.read")], responses=problems(), response_model=wire.HaStatus)
    async def get_ha_status() -> Response:
        """What high availability could do now: fence classes, brakes, and whom the loss of each node would strand."""
        return Response(_encode(await status.now()), media_type=JSON)

    @routes.post(
        "/nodes/{node}/confirm-off",
        dependencies=[needs("nodes.confirm_off")],
        responses=problems(404, 409, 412),
        response_model=wire.ConfirmedOff,
    )
    async def confirm_node_off(
        node: NodeRef, body: wire.ConfirmOff, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Say that a silent node is off: what ran there is started elsewhere. If it is not off, VMs run twice."""
        found, member = await service.confirm_off(node, who.name, once, held, with_unprotected=body.with_unprotected)
        said = {"node": found.name, "node_id": found.id, "proof": member.proof, "reason": member.reason}
        return Response(_encode(said | {"with_unprotected": member.all_vms}), media_type=JSON)

    @routes.post(
        "/nodes/{node}/hold",
        dependencies=[needs("nodes.hold")],
        responses=problems(404, 409, 412, 503, 504),
        response_model=wire.OnHold,
    )
    async def hold_node(node: NodeRef, body: wire.HoldCreate, who: Caller, held: IfMatch, once: Asked) -> Response:
        """Leave a node alone for a while, as its agent is to be away: its guarded VMs run on. Its return ends it."""
        found = await service.hold(node, body.for_s, who.name, once, held)
        return Response(_encode({"node": found.name, "node_id": found.id, "for_s": body.for_s}), media_type=JSON)

    _devices(routes, service)
    return routes


def _devices(routes: APIRouter, service: FencingService) -> None:
    path = "/nodes/{node}/fence-device"

    @routes.get(path, dependencies=[needs("nodes.read")], responses=problems(404), response_model=wire.FenceDevice)
    async def get_fence_device(node: NodeRef) -> Response:
        """How a node's power is reached. Its password is not shown."""
        return _shown(*service.device(node))

    @routes.put(
        path,
        dependencies=[needs("nodes.fence_device")],
        responses=problems(404, 409, 412),
        response_model=wire.FenceDevice,
    )
    async def set_fence_device(node: NodeRef, body: wire.FenceDeviceSet, who: Caller, held: IfMatch) -> Response:
        """Say how a node's power is reached. Nothing is asked of it: test it, and see that it is this node's."""
        return _shown(*await service.put(node, body, who.name, held))

    @routes.delete(
        path,
        dependencies=[needs("nodes.fence_device")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_fence_device(node: NodeRef, who: Caller, held: IfMatch) -> Response:
        """Reach the node's power no more."""
        await service.remove(node, who.name, held)
        return Response(status_code=204)

    @routes.get(
        f"{path}/power",
        dependencies=[needs("nodes.read_power")],
        responses=problems(401, 404, 409, 503, 504),
        response_model=wire.FenceDeviceReading,
    )
    async def get_fence_device_power(node: NodeRef) -> Response:
        """Read the state of a node's power through its fence device. Nothing is switched."""
        found, power, wrong = await service.probe(node)
        said: dict[str, Any] = {"node": found.name, "node_id": found.id, "power": power}
        return Response(_encode(said | {"problem": msgspec.structs.asdict(wrong) if wrong else None}), media_type=JSON)


def _shown(node: Node, stored: Stored[FenceDevice]) -> Response:
    device = stored.record
    fields = ("kind", "address", "user", "system", "fingerprint", "created_at", "updated_at")
    said = {name: getattr(device, name) for name in fields}
    body = said | {"node": node.name, "node_id": node.id, "revision": stored.modified}
    return record(None, _encode(body), stored.modified)
