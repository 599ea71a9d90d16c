"""Tenure: until when this node may run machines, and how it comes to know. Rules R1, R4, R6, R10, R11, pure.

All times are seconds of this host's CLOCK_BOOTTIME, which also counts while it sleeps. A time is read before anything
is sent, never when an answer comes: what an answer took is time that others have waited already.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from novacron.model.membership import Membership, MemberState
from novacron.model.timing import Timing


class Tenure(msgspec.Struct, frozen=True, kw_only=True):
    """epoch: of the last join that succeeded; 0: none since this agent began, so nothing is started. deadline_s: what
    is guarded does not run beyond it. beats: of the last heartbeat sent; ttl_s: what heartbeats ask for. servers: who
    must agree to give this node time while the store is away; joining_s: when the last join was about to be sent;
    left_s: when it was to end, so that the answer to an earlier join does not bring it back.
    """

    ttl_s: float
    epoch: int = 0
    deadline_s: float = -math.inf
    beats: int = 0
    servers: frozenset[str] = frozenset()
    joining_s: float = -math.inf
    left_s: float = -math.inf


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat, and when it was about to be sent. Sent to any one server; never twice."""

    epoch: int
    beats: int
    ttl_s: float
    at_s: float


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A join of the record that was seen (None: there is none), for that ttl and those servers, and when it was about
    to be sent. `sending` comes between this and that.

    end_first: nothing guarded may live when it is sent: it may run elsewhere by now (rule R6).
    """

    seen: Membership | None
    at_s: float
    ttl_s: float
    servers: tuple[str, ...]
    end_first: bool

    @property
    def latest_s(self) -> float:
        """No timer may be armed for later when it is sent (R11): an agent that has just started may find machines that
        an earlier one gave a longer ttl, and servers wait only for what this join says.
        """
        return self.at_s + self.ttl_s


def beating(tenure: Tenure, now_s: float) -> tuple[Tenure, Beat]:
    """The next heartbeat, and the tenure from before it is sent."""
    beats = tenure.beats + 1
    beat = Beat(epoch=tenure.epoch, beats=beats, ttl_s=tenure.ttl_s, at_s=now_s)
    return msgspec.structs.replace(tenure, beats=beats), beat


def beat_counted(tenure: Tenure, beat: Beat) -> Tenure:
    """After the answer that the heartbeat was written (R1). One of an older epoch says nothing."""
    if beat.epoch != tenure.epoch:
        return tenure
    return _until(tenure, beat.at_s + min(beat.ttl_s, tenure.ttl_s))


def with_ttl(tenure: Tenure, ttl_s: float, now_s: float) -> Tenure:
    """Asking for another ttl from the next heartbeat on (R11). A shorter one counts at once, before it is sent: servers
    wait only for what the record says, and it may be written without this node hearing of it.
    """
    deadline_s = min(tenure.deadline_s, now_s + ttl_s)
    return msgspec.structs.replace(tenure, ttl_s=ttl_s, deadline_s=deadline_s)


def joining(tenure: Tenure, seen: Membership | None, servers: Collection[str], now_s: float) -> Join | None:
    """What the record asks for, as it stands; None: it is this tenure's own, for those servers, all is well.

    Up: this agent is new, an answer was lost, or it is to ask other servers. Fencing: to join is to lift the bar, and
    that it can be lifted proves that nothing was taken over; machines never notice. Fenced: what is guarded ends first.
    """
    own = seen is not None and seen.state is MemberState.UP and seen.epoch == tenure.epoch
    if own and tenure.servers == frozenset(servers):
        return None
    end_first = seen is not None and seen.state is MemberState.FENCED
    return Join(seen=seen, at_s=now_s, ttl_s=tenure.ttl_s, servers=tuple(sorted(servers)), end_first=end_first)


def sending(tenure: Tenure, join: Join) -> Tenure:
    """Before a join is sent: from here on the servers it names must agree, too. It may be written without this node
    hearing of it, and then any of them may fence it.
    """
    servers = tenure.servers | frozenset(join.servers)
    return msgspec.structs.replace(tenure, servers=servers, joining_s=join.at_s)


def joined(tenure: Tenure, join: Join, member: Membership) -> Tenure:
    """After the answer that the join was written, as `member`: it counts as a heartbeat."""
    if member.epoch <= tenure.epoch or join.at_s <= tenure.left_s:
        return tenure
    last = join.at_s == tenure.joining_s
    tenure = msgspec.structs.replace(
        tenure,
        epoch=member.epoch,
        beats=max(tenure.beats, member.beats),
        servers=frozenset(join.servers) if last else tenure.servers,
    )
    return _until(tenure, join.at_s + min(join.ttl_s, tenure.ttl_s))


def anew(tenure: Tenure) -> Tenure:
    """Before a join that says something else of this node, as its word holds for an epoch (0018). What time it has is
    still its own; orders wait for the new epoch.
    """
    return msgspec.structs.replace(tenure, epoch=0)


def leaving(tenure: Tenure, now_s: float) -> Tenure:
    """Before the node says that nothing of it runs: it has no time and no epoch from here on, whatever is answered to
    this or was asked before. A join from here on ends the epoch that a late word of leaving would speak of.
    """
    return Tenure(ttl_s=tenure.ttl_s, beats=tenure.beats, servers=tenure.servers, left_s=now_s)


def given_time(
    tenure: Tenure, epoch: int, asked_s: float, promised: Collection[str], now_s: float, timing: Timing
) -> Tenure:
    """After servers promised to leave this node alone while the store is away (R10). asked_s: when they were asked,
    in which `epoch`. Only all of its servers together, and only while there is time left: after that a takeover may
    have been waiting for this very deadline.
    """
    agreed = bool(tenure.servers) and tenure.servers <= frozenset(promised)
    if epoch != tenure.epoch or not agreed or now_s >= tenure.deadline_s:
        return tenure
    return _until(tenure, asked_s + timing.promise_s)


def _until(tenure: Tenure, deadline_s: float) -> Tenure:
    """No answer takes time away: answers overtake each other."""
    return msgspec.structs.replace(tenure, deadline_s=max(tenure.deadline_s, deadline_s))
