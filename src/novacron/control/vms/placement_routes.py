"""The paths of placement: where a VM could go, and why not elsewhere. Nothing is decided here, and nothing changes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, noun, problems
from novacron.control.vms.service import VmService
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import Ref
from novacron.wire.rest.placement import PlacementPlan

VmRef = Annotated[Ref, Path(description="Id or name of a VM.")]


def router(service: VmService) -> APIRouter:
    """Both paths."""
    routes = noun("vms")

    @routes.get(
        "/vms/{vm}/placement",
        dependencies=[needs("vms.explain_placement")],
        responses=problems(404),
        response_model=PlacementPlan,
    )
    async def get_vm_placement(vm: VmRef) -> Response:
        """For every node whether the VM could be started there now, every reason why not, and how good it is."""
        return Response(msgspec.json.encode(service.placement(vm)), media_type=JSON)

    @routes.post(
        "/placement-plans",
        dependencies=[needs("vms.plan_placement")],
        responses=problems(409, 507),
        response_model=PlacementPlan,
    )
    async def plan_placement(body: wire.VmCreate, who: Caller) -> Response:
        """The same of a VM that is not made yet: where `POST /vms` with the same body would put it. Nothing is made."""
        return Response(msgspec.json.encode(service.foresee(body, who.name)), media_type=JSON)

    return routes
