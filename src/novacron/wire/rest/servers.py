"""Servers on the wire."""

from __future__ import annotations

import datetime
from enum import StrEnum

from pydantic import Field

from novacron.wire.rest.common import Strict


class ServerState(StrEnum):
    """`silent`: nothing was heard of it for some seconds."""

    UP = "up"
    SILENT = "silent"


class Server(Strict):
    """A control plane process on this store, as the one that answers sees it."""

    id: str
    name: str
    address: str = Field(description="Where it serves its API, as it says itself.")
    version: str
    started_at: datetime.datetime
    state: ServerState
    seen_ago_s: float = Field(description="Since it last showed that it lives, by the clock of the one that answers.")
    leads: bool = Field(description="Whether it runs the workers.")
    term: int | None = Field(description="Numbers the times of leading; null: it does not lead.")
    leads_since: datetime.datetime | None
