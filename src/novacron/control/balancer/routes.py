"""The paths of the balancer: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import JSON, IfMatch, noun, problems, reads, record
from novacron.control.balancer.service import BalancerService
from novacron.control.balancer.view import plan_shown, settings_shown
from novacron.model.balancer import Settings
from novacron.wire.rest import balancer as wire

_encode = msgspec.json.Encoder().encode


def router(service: BalancerService) -> APIRouter:
    """All paths of the balancer."""
    routes = noun("balancer")

    @routes.get("/balancer", dependencies=[needs("balancer.read")], responses=reads(), response_model=wire.Balancer)
    async def get_balancer(request: Request) -> Response:
        """Whether VMs are moved by themselves, and how sure that has to be. revision 0: nobody has set it."""
        stored = service.settings
        return record(request, _encode(settings_shown(stored.record, stored.modified)), stored.modified)

    @routes.put(
        "/balancer",
        dependencies=[needs("balancer.update")],
        responses=problems(409, 412),
        response_model=wire.Balancer,
    )
    async def put_balancer(request: Request, body: wire.BalancerPut, held: IfMatch) -> Response:
        """Set all of it; a field left out is as is usual. Moves under way go on."""
        stored = await service.set(Settings(**body.model_dump()), held)
        return record(request, _encode(settings_shown(stored.record, stored.modified)), stored.modified)

    @routes.get(
        "/balancer/plan",
        dependencies=[needs("balancer.plan")],
        responses=problems(),
        response_model=wire.BalancerPlan,
    )
    async def get_balancer_plan() -> Response:
        """What the balancer would begin now, why, what that costs, and why no more. Nothing is changed."""
        mode = service.settings.record.mode
        return Response(_encode(plan_shown(await service.plan(), mode)), media_type=JSON)

    return routes
