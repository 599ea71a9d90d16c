"""Calls about servers: who is there, and who leads."""

from __future__ import annotations

import datetime

import msgspec

from novacron.client.call import Call, Page, path_of


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server as the one that answers sees it; `state` is plain text, so that an old client can read a newer server.

    term, leads_since: None unless it leads.
    """

    id: str
    name: str
    address: str
    version: str
    started_at: datetime.datetime
    state: str
    seen_ago_s: float
    leads: bool
    term: int | None
    leads_since: datetime.datetime | None


def search() -> Call[Page[Server]]:
    """All servers of the cluster, by name."""
    return Call(method="GET", path=path_of("servers"), answer=Page[Server])
