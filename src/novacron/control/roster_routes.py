"""The path of servers: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import noun, page, problems
from novacron.control.roster import Roster, Seen
from novacron.wire.rest import servers as wire
from novacron.wire.rest.common import PageOf

_encode = msgspec.json.Encoder().encode


def router(roster: Roster) -> APIRouter:
    """All paths of servers."""
    routes = noun("servers")

    @routes.get(
        "/servers", dependencies=[needs("servers.read")], responses=problems(503), response_model=PageOf[wire.Server]
    )
    async def list_servers() -> Response:
        """Which servers there are, as the one that answers sees them, and which of them leads. Always one page."""
        return page([_encode(_data(seen)) for seen in await roster.servers()], None)

    return routes


def _data(seen: Seen) -> dict[str, Any]:
    presence, lead = seen.presence, seen.lead
    return {
        "id": presence.id,
        "name": presence.name,
        "address": presence.address,
        "version": presence.version,
        "started_at": presence.started_at,
        "state": wire.ServerState.UP if seen.is_up else wire.ServerState.SILENT,
        "seen_ago_s": round(seen.seen_ago_s, 3),
        "leads": lead is not None,
        "term": lead.term if lead else None,
        "leads_since": lead.since if lead else None,
    }
