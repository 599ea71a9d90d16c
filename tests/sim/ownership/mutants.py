"""Rules broken on purpose, one at a time: what the simulator must notice, or it guards nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import msgspec

from novacron.agent import self_fence, tenure, warrant
from novacron.agent.tenure import Join, Tenure
from novacron.agent.warrant import Order
from novacron.control.fencing import decide as fencing
from novacron.control.ha import brake, fence, sight, takeover, word
from novacron.control.ha.sight import Sight
from novacron.control.ha.takeover import Claim, Plan
from novacron.control.scheduler.snapshot import Candidate, Limits
from novacron.errors import Reason
from novacron.model import ha, membership, migration_steps
from novacron.model.fence_device import Power
from novacron.model.ha import FenceClass, Proof, Protection
from novacron.model.membership import Membership, MemberState
from novacron.model.migration import Migration
from novacron.model.timing import Timing
from tests.sim.ownership.faults import KINDS, Fault
from tests.sim.ownership.world import USUAL, Options

REFUSAL, PLAN, GIVEN_TIME, FREE_AFTER = warrant.refusal, takeover.plan, tenure.given_time, sight.free_after_s


@dataclasses.dataclass(frozen=True)
class Mutant:
    """breaks: by (module, name), what stands in its place. plan: the faults it is to meet; empty: drawn by each seed.
    first, seeds: from that one on, among so many it must be noticed.
    """

    rule: str
    breaks: tuple[tuple[Any, str, Any], ...]
    options: Options = USUAL
    plan: tuple[Fault, ...] = ()
    first: int = 0
    seeds: int = 100

    @contextmanager
    def applied(self) -> Iterator[None]:
        kept = [(module, name, getattr(module, name)) for module, name, _ in self.breaks]
        try:
            for module, name, instead in self.breaks:
                setattr(module, name, instead)
            yield
        finally:
            for module, name, before in kept:
                setattr(module, name, before)


def _checks(codes: Collection[str]) -> Callable[..., Reason | None]:
    """An order is refused for these reasons only."""

    def refusal(order: Order, held: Tenure, floor: int, now_s: float, timing: Timing) -> Reason | None:
        if "order.generation" not in codes:
            floor = 0
        if "order.epoch" not in codes:
            held = msgspec.structs.replace(held, epoch=order.epoch)
        if "order.deadline" not in codes:
            held = msgspec.structs.replace(held, deadline_s=now_s + timing.ttl_s)
        return REFUSAL(order, held, floor, now_s, timing)

    return refusal


def _beaten_though_barred(member: Membership, epoch: int, beats: int, ttl_s: float) -> Membership | None:
    return msgspec.structs.replace(member, beats=max(beats, member.beats + 1), ttl_s=ttl_s)


def _fenced_blindly(member: Membership, seen: Membership, proof: Proof, reason: str) -> Membership | None:
    if member.state is MemberState.FENCED:
        return None
    return msgspec.structs.replace(member, state=MemberState.FENCED, epoch=member.epoch + 1, reason=reason)


def _no_wait(seen: Sight, timing: Timing) -> float:
    return seen.since_s + timing.suspect_s


def _no_kill_time(seen: Sight, timing: Timing) -> float:
    return seen.since_s + timing.by_other_clock_s(seen.member.ttl_s)


def _usual_ttl(seen: Sight, timing: Timing) -> float:
    member = msgspec.structs.replace(seen.member, ttl_s=timing.ttl_s)
    return FREE_AFTER(msgspec.structs.replace(seen, member=member), timing)


def _promise_forgotten(seen: Sight, timing: Timing) -> float:
    return FREE_AFTER(msgspec.structs.replace(seen, promised_s=-1e9), timing)


def _one_promise(
    held: Tenure, epoch: int, asked_s: float, agreed: Collection[str], now_s: float, timing: Timing
) -> Tenure:
    alone = msgspec.structs.replace(held, servers=frozenset(agreed))
    return msgspec.structs.replace(held, deadline_s=GIVEN_TIME(alone, epoch, asked_s, agreed, now_s, timing).deadline_s)


def _asked_later(held: Tenure, join: Join) -> Tenure:
    return msgspec.structs.replace(held, joining_s=join.at_s)


def _shortened_later(held: Tenure, ttl_s: float, now_s: float) -> Tenure:
    return msgspec.structs.replace(held, ttl_s=ttl_s)


def _left_blindly(member: Membership, state: MemberState, epoch: int) -> Membership | None:
    if member.state is MemberState.FENCED:
        return None
    return msgspec.structs.replace(member, state=MemberState.FENCED, epoch=member.epoch + 1, proof=Proof.AGENT)


def _proven_blindly(
    member: Membership, seen: Membership, proof: Proof, reason: str, *, all_vms: bool = False
) -> Membership | None:
    if member.proof is not Proof.NONE:
        return None
    return msgspec.structs.replace(member, state=MemberState.FENCED, epoch=member.epoch + 1, proof=proof)


def _off_as_soon_as_asked(power: Power, asked_ago_s: float | None) -> fencing.Step:
    return fencing.Step.SWITCH_OFF if asked_ago_s is None else fencing.Step.PROVEN


def _plan_without_disks(
    member: Membership, claims: Collection[Claim], candidates: Sequence[Candidate], room: Limits
) -> Plan:
    blind = [msgspec.structs.replace(one, need=msgspec.structs.replace(one.need, pools=())) for one in claims]
    return PLAN(member, blind, candidates, room)


def _always_worth(protection: Protection, member: Membership, *, provable: bool = False) -> bool:
    return True


def _never_refused(claim: Claim, member: Membership) -> Reason | None:
    return None


def _not_cut_short(migration: Migration, member: Membership, now: Any) -> Migration:
    return migration


def _unlimited(log: ha.FenceLog, node_id: str, epoch: int, reason: str, limit: int) -> ha.FenceLog | None:
    return NOTED(log, node_id, epoch, reason, 1 << 30)


NOTED, JOINING = ha.noted, tenure.joining


def _survivors_keep_their_time(
    held: Tenure, seen: Membership | None, servers: Collection[str], now_s: float
) -> Join | None:
    join = JOINING(held, seen, servers, now_s)
    return None if join is None else msgspec.structs.replace(join, ttl_s=1e6)


def _by_name(*names: str) -> tuple[migration_steps.Step, ...]:
    steps = {step.name: step for step in migration_steps.STREAMED}
    return tuple(steps[name] for name in names)


# -- what they are to meet: a cluster of three nodes (0 to 2) and three servers, and faults one after the other ------

SURE = Options(nodes=3, servers=3, listed=3, classes=(FenceClass.WATCHDOG,), fences=4)
TIMERS = Options(
    classes=(FenceClass.TIMER,), min_class=FenceClass.TIMER, without=frozenset({"freeze", "stuck", "guardian"})
)
SWITCHED = Options(classes=(FenceClass.TIMER,), bmcs=True, fences=4)
"""No deadline counts for VMs that ask for a watchdog there: only power that reads off, or a node's word."""
FROZEN = Options(
    classes=(FenceClass.TIMER,),
    min_class=FenceClass.TIMER,
    without=frozenset({"stuck", "guardian", "cut", "half", "power", "agent", "pause"}),
)
WHOLE = next(salt for salt in range(1000) if (lambda rng: rng.random() >= 0.25 and rng.random() < 0.4)(Random(salt)))
"""The salt of a cut from everybody else."""
S0, S1, S2, STORE = 3, 4, 5, 6
"""Places in a cut between two."""


def fault(at_s: float, kind: str, length_s: float, node: int = 0, salt: int = 0, vm: int = 0) -> Fault:
    return Fault(at_s=at_s, kind=kind, node=node, vm=vm, length_s=length_s, salt=salt)


HELD_START = (fault(18.0, "deaf", 42.0), fault(20.0, "power", 1.0))
"""Orders to start VM 0 on node 0 are on their way from server 0 until 60 s."""
HELD_THEN_CUT = (*HELD_START, fault(27.0, "cut", 40.0, salt=WHOLE))
HELD_THEN_FENCED = (fault(18.0, "deaf", 57.0), fault(20.0, "power", 1.0), fault(27.0, "power", 33.0))
HELD_THEN_MOVED = (*HELD_START, fault(35.0, "migrate", 0.0, node=1, salt=1))
HELD_THEN_SHELVED = (*HELD_START, fault(33.0, "shelve", 0.0, node=1, salt=1), fault(34.5, "deaf", 60.0, salt=1))
STUCK = (fault(20.0, "stuck", 60.0), fault(21.0, "cut", 60.0, salt=WHOLE))
ONE_SERVER_LEFT = (
    fault(20.0, "pair", 60.0, node=S0, salt=STORE),
    fault(20.0, "pair", 60.0, salt=S1),
    fault(20.0, "pair", 60.0, salt=S2),
)
NEW_SERVER = (
    fault(20.0, "pair", 60.0, node=S0, salt=STORE),
    fault(20.0, "pair", 60.0, node=S1, salt=STORE),
    fault(20.0, "pair", 60.0, salt=S2),
)
LISTED_UNHEARD = (
    *(fault(19.95, "deaf", 2.2, salt=salt) for salt in range(3)),
    fault(20.0, "relist", 0.0),
    *(fault(22.05, one.kind, one.length_s, one.node, one.salt) for one in NEW_SERVER),
)
PROMISED = (fault(20.0, "store", 40.0), fault(58.0, "cut", 60.0, salt=WHOLE), fault(60.0, "stuck", 40.0))
CALLED_OFF = (fault(20.0, "upgrade", 6.0), fault(38.0, "cut", 60.0, salt=WHOLE))
UPGRADED = (fault(20.0, "upgrade", 6.0, salt=1), fault(34.0, "cut", 60.0, salt=WHOLE))
LONG_UPGRADE = (fault(20.0, "upgrade", 70.0, salt=1),)
LEFT_LATE = (
    fault(19.9, "pair", 40.0, salt=S0),
    fault(19.9, "pair", 8.0, salt=S1),
    fault(19.9, "pair", 8.0, salt=S2),
    fault(20.0, "leave", 8.0),
    fault(45.0, "migrate", 0.0, salt=1),
)
LATE_WORD = (fault(20.0, "power", 4.0), fault(22.0, "word", 25.0))
TARGET_LOST = (
    fault(20.0, "migrate", 0.0, node=2, vm=1),
    fault(24.0, "deaf", 30.0, node=2),
    fault(31.0, "power", 80.0, node=2),
)
UNHEARD = (fault(20.0, "migrate", 0.0, node=1), fault(26.0, "mute", 8.0, node=1), fault(30.0, "cancel", 0.0))
MOVES_ONLY = Options(every_s=0.2, without=frozenset(KINDS) - {"migrate"}, decides_by_reading=True)
STORM = (fault(20.0, "power", 40.0), fault(20.1, "power", 40.0, node=1))
TIME, EPOCH, FLOOR = "order.deadline", "order.epoch", "order.generation"

MUTANTS: tuple[Mutant, ...] = (
    Mutant("R2 without time", ((warrant, "refusal", _checks({FLOOR, EPOCH})),), SURE, HELD_THEN_CUT),
    Mutant("R2 in any epoch", ((warrant, "refusal", _checks({FLOOR, TIME})),), SURE, HELD_THEN_FENCED),
    Mutant("R3 no timer fires", ((self_fence, "due", lambda armed_s, now_s: ()),)),
    Mutant("R3 the watchdog is fed", ((self_fence, "may_feed", lambda armed_s, now_s: True),), SURE, STUCK),
    Mutant("R4 no barrier", ((membership, "beaten", _beaten_though_barred), (membership, "fenced", _fenced_blindly))),
    Mutant("R5 no wait", ((fence, "free_after_s", _no_wait),)),
    Mutant("R5 no wait for the kill", ((fence, "free_after_s", _no_kill_time),), SURE, STUCK),
    Mutant(
        "R7 the target runs before the commit",
        (
            (migration_steps, "STREAMED", _by_name("accept", "send", "take_over", "commit", "verify", "release")),
            (warrant, "floor_of", lambda holding: holding.generation),
        ),
        SURE,
        UNHEARD,
    ),
    Mutant("R8 decided by reading", (), MOVES_ONLY),
    Mutant("R9 no floor", ((warrant, "refusal", _checks({EPOCH, TIME})),), SURE, HELD_THEN_MOVED),
    Mutant("R10 one promise is enough", ((tenure, "given_time", _one_promise),), SURE, ONE_SERVER_LEFT),
    Mutant("R10 promises are not waited for", ((fence, "free_after_s", _promise_forgotten),), SURE, PROMISED),
    Mutant(
        "R10 a server that is not asked fences",
        ((fence, "may_fence", lambda server, member: True),),
        dataclasses.replace(SURE, listed=2),
        NEW_SERVER,
    ),
    Mutant(
        "R10 new servers are asked once they are known to be listed",
        ((tenure, "sending", _asked_later),),
        dataclasses.replace(SURE, listed=2),
        LISTED_UNHEARD,
    ),
    Mutant("R11 a shorter ttl counts later", ((tenure, "with_ttl", _shortened_later),), SURE, CALLED_OFF),
    Mutant("R11 survivors keep their time", ((tenure, "joining", _survivors_keep_their_time),), SURE, UPGRADED),
    Mutant("R11 the usual ttl is waited for", ((fence, "free_after_s", _usual_ttl),), SURE, LONG_UPGRADE),
    Mutant("R12 restarted where its disk is not", ((takeover, "plan", _plan_without_disks),)),
    Mutant(
        "R13 its last node is not asked",
        ((migration_steps, "REASSIGNED", _by_name("commit")),),
        SURE,
        HELD_THEN_SHELVED,
    ),
    Mutant("R14 a late word of leaving counts", ((membership, "left", _left_blindly),), SURE, LEFT_LATE),
    Mutant("a BMC's answer is believed", ((fencing, "next_step", _off_as_soon_as_asked),), SWITCHED),
    Mutant("a late reading of the power counts", ((membership, "proven", _proven_blindly),), SWITCHED),
    Mutant("a live node is off by a word", ((word, "refusal", lambda seen, now_s, timing: None),), SURE, LATE_WORD),
    Mutant("a barred node is handed VMs", ((membership, "takes_machines", lambda member: True),), SWITCHED, first=49),
    Mutant("any fence class", ((takeover, "refusal", _never_refused), (takeover, "is_worth", _always_worth))),
    Mutant("a takeover leaves the migration alone", ((takeover, "cut_short", _not_cut_short),), SURE, TARGET_LOST),
    Mutant("no limit of fences", ((ha, "noted", _unlimited), (brake, "spent", lambda log, timing: None))),
    Mutant(
        "no storm brake",
        ((brake, "storm", lambda sights, now_s, timing: None),),
        dataclasses.replace(SURE, no_fences_until_s=59.0),
        STORM,
    ),
)
