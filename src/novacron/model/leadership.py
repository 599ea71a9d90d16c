"""Leadership: which server runs the workers. The two records that say so, and when a server may write them. Pure.

    leader/term    who leads under which number; changed only when another begins or the leader resigns
    leader/beat    changed by the leader every `beat_s`: it lives

Who leads counts its time from before it asked for a beat that was then written. Everybody else counts, each by its own
clock, from when it saw the records change last, and waits longer than that; no clock is compared with another's.
"""

from __future__ import annotations

import datetime
import math

import msgspec

CLOCK_RATE_BOUND = 0.005
"""How far the rate of any server's clock is from true time, at the most (as model/timing has it of nodes)."""
MARGIN_S = 0.25


class Timing(msgspec.Struct, frozen=True):
    """lease_s: for so long a leader acts after it last asked for a beat that was written."""

    lease_s: float = 3.0
    beat_s: float = 1.0
    look_s: float = 0.25

    @property
    def wait_s(self) -> float:
        """For so long the records must stand still before another takes over."""
        return self.lease_s * (1 + 2 * CLOCK_RATE_BOUND) + MARGIN_S

    @property
    def is_alone(self) -> bool:
        """Nobody else can have the store open: the time of a leader has no end, and there is nobody to wait for."""
        return math.isinf(self.lease_s)


STANDARD = Timing()
ALONE = Timing(lease_s=math.inf)


class Candidate(msgspec.Struct, frozen=True):
    """One server's process. server_id: kept in its data directory, which one process at a time uses."""

    server_id: str
    name: str
    process_id: str


class Lead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of the term. since: for people."""

    term: int
    server_id: str
    name: str
    process_id: str
    since: datetime.datetime
    resigned: bool = False


class Stand(msgspec.Struct, frozen=True):
    """Both records as read at one moment; revisions 0: there is none."""

    lead: Lead | None = None
    term_revision: int = 0
    beat_revision: int = 0


class Sighting(msgspec.Struct, frozen=True):
    """What was seen, and since when it has stood so, by the clock of who looks."""

    stand: Stand
    since_s: float


def sighted(before: Sighting | None, stand: Stand, now_s: float) -> Sighting:
    """now_s: read after `stand` was, never before."""
    return before if before is not None and before.stand == stand else Sighting(stand, now_s)


def may_lead(sighting: Sighting, candidate: Candidate, now_s: float, timing: Timing) -> bool:
    """Whether the candidate may begin the next term now."""
    lead = sighting.stand.lead
    if lead is None or lead.resigned or timing.is_alone:
        return True
    if lead.server_id == candidate.server_id:
        return True  # itself, its time having run out; or the process before it, which is gone
    return now_s - sighting.since_s >= timing.wait_s


def begun(stand: Stand, candidate: Candidate, now: datetime.datetime) -> Lead:
    """The next term, of the candidate."""
    return Lead(
        term=(stand.lead.term if stand.lead else 0) + 1,
        server_id=candidate.server_id,
        name=candidate.name,
        process_id=candidate.process_id,
        since=now,
    )


def resigned(lead: Lead) -> Lead:
    """Nobody leads: whoever comes first may."""
    return msgspec.structs.replace(lead, resigned=True)
