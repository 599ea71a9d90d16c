"""Tokens with which nodes join, and revocations, on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field

from novacron.wire.rest.common import Name, Strict, example

TEN_MINUTES_S = 600


class NodeTokenCreate(Strict):
    """node: only for the node of this name, which may be known already; absent: for a new node of any name."""

    node: Name | None = None
    lasts_s: Annotated[int, Field(ge=10, le=86_400)] = TEN_MINUTES_S

    model_config = Strict.model_config | example({"node": "node-4", "lasts_s": TEN_MINUTES_S})


class NodeToken(Strict):
    """token: a secret, shown this once; it carries the fingerprint of the cluster's CA."""

    token: str
    node: str | None
    expires_at: datetime.datetime


class NodeRevoked(Strict):
    node_id: str
    node: str
    reason: str
