"""Frames about a node's membership: heartbeats, joins, pleas for time, leaving, and what the server answers to each.

    agent → server   Beat, Join, Plea, Leave
    server → agent   Standing, at most one for each; none when it is not known whether something was written

An agent asks only servers whose Welcome named its terms (see wire.agent), so that older ones are not met with frames
that they do not know.
"""

from __future__ import annotations

import msgspec

from novacron.model.ha import FenceClass
from novacron.model.membership import Membership, MemberState
from novacron.model.timing import Timing


class ServerAt(msgspec.Struct, frozen=True, kw_only=True):
    """A server that lives, and where nodes reach it (`https://host:port`)."""

    id: str
    address: str


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself to an agent that is to heartbeat. servers: whom to ask for time when the store is
    away, this one among them. places: where those of them are that say so; empty: not told.
    """

    server_id: str
    servers: tuple[str, ...]
    timing: Timing
    places: tuple[ServerAt, ...] = ()


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="beat"):
    """Count a heartbeat (rule R1). Never sent twice."""

    id: int
    epoch: int
    beats: int
    ttl_s: float


class Join(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="join"):
    """Take part under a new epoch. state, epoch: of the record as the agent has seen it; None, 0: there is none."""

    id: int
    state: MemberState | None
    epoch: int
    boot_id: str
    fence_class: FenceClass
    ttl_s: float
    servers: tuple[str, ...]


class Plea(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="plea"):
    """Promise not to fence this node for a while, as the store is away (rule R10)."""

    id: int


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="leave"):
    """Every machine of this node was ended, and seen to have ended: they may run elsewhere at once. state, epoch: of
    the record that it speaks of (rule R14). An older server does not know the word, and ends the line.
    """

    id: int
    state: MemberState
    epoch: int


class Standing(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="standing"):
    """counted: it was written, or promised. member: the record as it stands now; None: there is none, or not asked.
    servers, places: as in Terms, as that server sees them now; empty: as before.
    """

    id: int
    counted: bool
    member: Membership | None = None
    servers: tuple[str, ...] = ()
    places: tuple[ServerAt, ...] = ()


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Ask with heartbeats for so long a ttl, as this agent is to be away (R11). The next agent's join, or that time,
    ends it. → None, once it counts
    """

    ttl_s: float


VERBS: dict[str, type[msgspec.Struct]] = {"member.hold": Hold}
Question = Beat | Join | Plea | Leave
