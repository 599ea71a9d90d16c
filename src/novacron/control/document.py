"""The OpenAPI document: made from the routes, with what every route shares written down once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from novacron.control.access.guard import permission_of
from novacron.wire.rest.common import Problem, Strict

TITLE = "NovaCron"
ABOUT = """\
Manages virtual machines and moves them between nodes.

**Who asks.** Every request but `/healthz` and `/readyz` carries `Authorization: Bearer <token>`. The permission
that a route needs stands beside it as `x-permission`.

**Errors** are `application/problem+json` (RFC 9457) with a stable `code` and one entry in `reasons` for each thing
that stands in the way.

**Revisions.** A record's `ETag` is its revision. `If-None-Match` spares an unchanged read, `If-Match` guards a write.

**Several servers.** A server answers reads from its cache, which others' writes reach some milliseconds late, and never
goes back. With `consistent=true` an answer holds all that any server acknowledged before the question.

**Lists** come in pages of at most 500, in order of birth; give `next_cursor` as `cursor` for the next one.

**Slow work** answers 202 with the record to watch. `Idempotency-Key` makes repeating a POST safe for 24 hours.

**Events.** The WebSocket `/api/v1/events` sends every change. First frame from the client:
`{"t": "subscribe", "object_types": ["vm"], "after": 4097}`; all fields but `t` may be left out. `after` is the last
`seq` seen: nothing is missed, or a `resync` frame says to list again. A browser that cannot set headers offers the
subprotocols `novacron.events.v1` and `bearer.<token>`.
"""
TAGS = {
    "vms": "Virtual machines: what is asked (`desired`), what is (`state`), what is being done (`task`).",
    "templates": "VMs to be made many times, in numbered versions, with parameters.",
    "nodes": "Hosts that run machines. They join when their agent dials in.",
    "images": "What machines start from: files by digest, inspected before anything opens them.",
    "pools": "Storage pools: where volumes lie, and which nodes reach them.",
    "volumes": "Disks with a life of their own; a VM's disks are volumes that live and die with it.",
    "networks": "Networks that span the nodes: subnets, gateways, and how guests get their addresses.",
    "security groups": "Rules of what may pass a card; what no rule allows is refused.",
    "snapshots": "A VM's disks, and if wished its memory, as they were at one moment; a tree for each VM.",
    "schedules": "Snapshots taken by themselves, and how many of them are kept.",
    "migrations": "Moves of machines: planned before, step by step, with what was measured beside what was predicted.",
    "migration policies": "Goals of migrations under a name, for the VMs that their labels select, or for all.",
    "bulk migrations": "Many moves within limits: planned before, paused, resumed, cancelled; nodes emptied.",
    "migration rehearsals": "Copies of VMs booted on other nodes and on networks of their own, looked at, deleted.",
    "balancer": "Moves that would make the cluster better: settings, and what it would do now and why.",
    "servers": "The servers of a cluster: any answers, one leads.",
    "server": "The server itself.",
}


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """OpenAPI 3.1 for all routes of `app` that are to be shown."""
    made = get_openapi(
        title=TITLE,
        version=version,
        openapi_version="3.1.0",
        description=ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    components = made.setdefault("components", {})
    _, shared = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    components.setdefault("schemas", {}).update(shared["$defs"])
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    _restore_examples(components["schemas"])
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The first one lies in admin.token."}
    }
    made["servers"] = [{"url": "/"}]
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(made["paths"][route.path_format][method.lower()], route)
    return made


def _restore_examples(schemas: dict[str, Any]) -> None:
    """FastAPI leaves nulls out of what it encodes; in an example they are words like any other."""
    for model in Strict.__subclasses__():
        extra = model.model_config.get("json_schema_extra")
        if model.__name__ in schemas and isinstance(extra, dict) and "examples" in extra:
            schemas[model.__name__]["examples"] = extra["examples"]


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    """What FastAPI does not know of a route: its permission, its name, that every error is a problem."""
    operation["operationId"] = route.name
    operation["summary"] = (route.description or route.name).split(".")[0].split("\n")[0]
    permission = permission_of(route)
    if permission is None:
        operation["security"] = []
    else:
        operation["security"] = [{"token": []}]
        operation["x-permission"] = permission
    for status, answer in operation["responses"].items():
        if status.startswith(("4", "5")) and "application/json" in answer.get("content", {}):
            del answer["content"]["application/json"]
        if status == "304":
            answer.pop("content", None)
        if status in ("200", "201", "202") and _has_revision(route):
            answer["headers"] = {"ETag": {"description": "The record's revision.", "schema": {"type": "string"}}}


def _has_revision(route: APIRoute) -> bool:
    return "revision" in getattr(route.response_model, "model_fields", {})
