"""Which kind and strategy a move to one node gets: the first way that the goals allow and that reaches them. Pure.

A way that does not is told why; when none does, those reasons are the refusal, before anything has moved. A downtime or
an end that somebody has asked for is kept to; the usual downtime is only aimed at.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from novacron.control.migrations import predict
from novacron.control.migrations.goals import Effective
from novacron.control.migrations.history import MIB, Costs, Link
from novacron.errors import Reason
from novacron.model.migration import Goals, MigrationKind, Strategy, Transport
from novacron.model.prediction import Prediction, Range

ONE_CARRIES_BYTES_PER_S = 100 * MIB
"""What one connection carries, encrypted, with no need of others: about 1 Gbit/s."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a move to one node. asked_kind, asked_strategy: None: the engine chooses.

    at_rest: nothing runs. disk_bytes: to be copied of disks. no_postcopy: why post-copy cannot be had between the two
    nodes; empty: it can. channels: connections memory can go over at once in pre-copy. transport, transport_why:
    how a stream would go.
    """

    node: str
    load: predict.Load
    link: Link
    costs: Costs
    at_rest: bool = False
    disk_bytes: int = 0
    asked_kind: MigrationKind | None = None
    asked_strategy: Strategy | None = None
    no_postcopy: str = ""
    channels: int = 1
    transport: Transport = Transport.DIRECT
    transport_why: str = ""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to move. pauses: the guest may stand still for what pre-copy cannot catch up with."""

    kind: MigrationKind
    strategy: Strategy
    predicted: Prediction
    why: str
    pauses: bool = False

    @property
    def name(self) -> str:
        """In words."""
        live = self.kind is MigrationKind.LIVE
        return (
            f"{self.kind.value}, {self.strategy.value}" + (" and pause" if self.pauses else "")
            if live
            else self.kind.value
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The way that is taken; why: in sentences; goals: as the record gets them, allowing no more than may happen.

    channels: connections that memory goes over at once.
    """

    way: Way
    goals: Goals
    why: tuple[str, ...]
    channels: int = 1


class Refusal(msgspec.Struct, frozen=True):
    """No way is allowed and reaches the goals."""

    reasons: tuple[Reason, ...]


def choose(course: Course, effective: Effective) -> Choice | Refusal:
    """The way to take to this node, or why there is none."""
    ways = tuple(_with_disks(course, way) for way in _ways(course, effective))
    failing = [(way, _misses(course, way, effective)) for way in ways]
    reaching = [way for way, misses in failing if not misses]
    if not reaching:
        told = [reason for _, misses in failing for reason in misses]
        return Refusal(tuple(told) or (_nothing_allowed(course, effective),))
    aim_ms = effective.goals.max_downtime_ms or float("inf")
    aiming = [way for way in reaching if way.predicted.downtime_ms.expected <= aim_ms]
    way = aiming[0] if aiming else min(reaching, key=lambda one: one.predicted.downtime_ms.expected)
    passed_over = tuple(
        f"not {other.name}: {miss.message}" for other, misses in failing[: ways.index(way)] for miss in misses
    )
    streams = way.kind is not MigrationKind.COLD
    transport = (course.transport_why,) if streams and course.transport_why else ()
    channels = course.channels if streams and _is_parallel(course, way, effective.goals) else 1
    parallel = (f"memory goes over {channels} connections at once",) if channels > 1 else ()
    doubts = _doubts(way, effective)
    return Choice(
        way=way,
        goals=msgspec.structs.replace(
            _binding(course, way, effective), transport=course.transport if streams else Transport.DIRECT
        ),
        why=(f"{way.name}: {way.why}", *passed_over, *transport, *parallel, *doubts, predicted_words(way.predicted)),
        channels=channels,
    )


def _is_parallel(course: Course, way: Way, goals: Goals) -> bool:
    """Post-copy fetches single pages, over one connection; the stream proxies have connections of their own; and a
    narrow bandwidth is kept to by one connection better than by several, each of which sends 512 KiB at a time.
    """
    direct = way.strategy is Strategy.PRECOPY and course.transport is not Transport.PROXY
    return direct and not 0 < goals.bandwidth_bytes_per_s < ONE_CARRIES_BYTES_PER_S


def staying(course: Course, effective: Effective, disk_bytes: int) -> Choice:
    """Its disks into other pools of its node, while it runs or rests."""
    kind = MigrationKind.COLD if course.at_rest else MigrationKind.LIVE
    predicted = predict.here(disk_bytes)
    way = Way(kind=kind, strategy=Strategy.PRECOPY, predicted=predicted, why="only its disks move")
    goals = msgspec.structs.replace(effective.goals, transport=Transport.DIRECT)
    return Choice(way=way, goals=goals, why=(f"{way.why}: it stays on its node", predicted_words(predicted)))


def _with_disks(course: Course, way: Way) -> Way:
    if not course.disk_bytes:
        return way
    return msgspec.structs.replace(way, predicted=predict.with_disks(way.predicted, course.disk_bytes, course.link))


def _ways(course: Course, effective: Effective) -> Iterator[Way]:
    """What the request and the goals allow, the gentlest for the guest first."""
    goals = effective.goals
    kind, strategy = course.asked_kind, course.asked_strategy
    if course.at_rest or kind is MigrationKind.COLD:
        why = "it does not run; its next start is on the target" if course.at_rest else "asked for"
        predicted = predict.cold(course.costs, at_rest=course.at_rest)
        yield Way(kind=MigrationKind.COLD, strategy=Strategy.PRECOPY, predicted=predicted, why=why)
        return
    if kind in (None, MigrationKind.LIVE):
        yield from _live_ways(course, goals, strategy)
    if kind is MigrationKind.WARM or (kind is None and strategy is None and goals.may_pause):
        predicted = predict.warm(course.load, course.link, course.costs)
        why = "asked for" if kind else "it may be paused, and nothing is sent twice"
        yield Way(kind=MigrationKind.WARM, strategy=Strategy.PRECOPY, predicted=predicted, why=why)


def _live_ways(course: Course, goals: Goals, strategy: Strategy | None) -> Iterator[Way]:
    plain = _plain(course, goals)
    behind = _rates(course)
    postcopied = predict.postcopy(course.load, course.link, course.costs)
    may_postcopy = not goals.never_postcopy and not course.no_postcopy
    hybrid = Way(
        kind=MigrationKind.LIVE,
        strategy=Strategy.HYBRID,
        predicted=predict.hybrid(course.load, course.link, course.costs, goals),
        why=f"pre-copy may not come to an end ({behind}), and post-copy is allowed",
    )
    if strategy is Strategy.POSTCOPY:
        if may_postcopy:
            yield Way(kind=MigrationKind.LIVE, strategy=strategy, predicted=postcopied, why="asked for")
    elif strategy is Strategy.HYBRID:
        if may_postcopy:
            yield msgspec.structs.replace(hybrid, why="asked for")
    else:
        may_postcopy = may_postcopy and strategy is None
        doubtful = plain.predicted.ends and not plain.predicted.ends_surely
        yield from (one for one in (hybrid,) if may_postcopy and doubtful)  # it ends in any case
        yield plain
        yield from (one for one in (hybrid,) if may_postcopy and not doubtful)
        if goals.may_pause:
            predicted = predict.precopy(course.load, course.link, course.costs, goals, pauses=True)
            why = f"pre-copy may not come to an end ({behind}); the guest may be paused for what is left"
            yield Way(kind=MigrationKind.LIVE, strategy=Strategy.PRECOPY, predicted=predicted, why=why, pauses=True)


def _plain(course: Course, goals: Goals) -> Way:
    """Pre-copy, with the guest slowed down only where that is allowed and needed."""
    predicted = predict.precopy(course.load, course.link, course.costs, goals)
    why = "memory comes down to what the stop may take, while the guest runs"
    if not predicted.ends_surely and goals.max_slowdown_percent:
        slow = predict.slowed(course.load, goals.max_slowdown_percent)
        predicted = predict.precopy(slow, course.link, course.costs, goals)
        why = f"the guest is slowed down by up to {goals.max_slowdown_percent} % where it writes too fast"
    return Way(kind=MigrationKind.LIVE, strategy=Strategy.PRECOPY, predicted=predicted, why=why)


def _misses(course: Course, way: Way, effective: Effective) -> tuple[Reason, ...]:
    """Why this way does not reach the goals."""
    goals, predicted, found = effective.goals, way.predicted, []
    if not predicted.ends:
        message = f"{way.name} would not come to an end: {_rates(course)}"
        found.append(Reason("goal.never_ends", message, course.node, _more(course, effective)))
    still, total = predicted.downtime_ms, predicted.total_ms
    sure = course.load.measured or way.kind is MigrationKind.COLD  # nothing is refused for what is only assumed
    still_ms, total_ms = (still.expected, total.expected) if sure else (still.low, total.low)
    if effective.is_said("max_downtime_ms") and goals.max_downtime_ms and still_ms > goals.max_downtime_ms:
        found.append(
            Reason(
                "goal.max_downtime_ms",
                f"{way.name} would have it stand still for {ms_words(still)}; "
                f"max_downtime_ms is {goals.max_downtime_ms} ({effective.by('max_downtime_ms')})",
                course.node,
                f"allow max_downtime_ms of {round(still.high) + 1}, or more bandwidth",
            )
        )
    if predicted.ends and total_ms / 1e3 > goals.finish_within_s:
        found.append(
            Reason(
                "goal.finish_within_s",
                f"{way.name} would take {ms_words(total)}; "
                f"finish_within_s is {goals.finish_within_s:g} ({effective.by('finish_within_s')})",
                course.node,
                f"allow finish_within_s of {round(total.high / 1e3) + 1}, or more bandwidth",
            )
        )
    return tuple(found)


def _more(course: Course, effective: Effective) -> str:
    """What else could be allowed, so that it would end."""
    goals, could = effective.goals, []
    if not course.no_postcopy and goals.never_postcopy:
        could.append(f"post-copy (never_postcopy: {effective.by('never_postcopy')})")
    elif not course.no_postcopy and course.asked_strategy is Strategy.PRECOPY:
        could.append("strategy hybrid")
    if not goals.may_pause:
        could.append("may_pause")
    if goals.max_slowdown_percent < 80:
        could.append("max_slowdown_percent of 80")
    if goals.bandwidth_bytes_per_s:
        could.append("more bandwidth")
    return f"allow {', or '.join(could)}" if could else "wait until it writes less, or move it cold"


def _nothing_allowed(course: Course, effective: Effective) -> Reason:
    """Only post-copy was asked for, and it is not to be had."""
    if course.no_postcopy:
        return Reason("driver.feature_missing", course.no_postcopy, course.node, "ask for pre-copy, or for nothing")
    by = effective.by("never_postcopy")
    message = f"strategy {course.asked_strategy} was asked for, and never_postcopy too ({by})"
    return Reason("goal.never_postcopy", message, course.node, "ask for strategy precopy, or never_postcopy false")


def _binding(course: Course, way: Way, effective: Effective) -> Goals:
    """The goals as they bind from here on: it may be paused only if that keeps to a downtime somebody asked for."""
    goals = effective.goals
    if not goals.may_pause or way.pauses or not effective.is_said("max_downtime_ms"):
        return goals
    stopped = predict.precopy(course.load, course.link, course.costs, goals, pauses=True)
    return msgspec.structs.replace(goals, may_pause=stopped.downtime_ms.high <= goals.max_downtime_ms)


def _doubts(way: Way, effective: Effective) -> Iterator[str]:
    goals, predicted = effective.goals, way.predicted
    if not predicted.ends_surely and way.strategy is Strategy.PRECOPY:
        yield f"at its worst it would not come to an end; it is given up after {goals.finish_within_s:g} s"
    if way.kind is MigrationKind.LIVE and goals.max_downtime_ms:
        if predicted.downtime_ms.expected > goals.max_downtime_ms:
            yield f"the usual downtime of {goals.max_downtime_ms} ms is not reached; nobody asked for one"
        elif predicted.downtime_ms.high > goals.max_downtime_ms:
            yield f"at its worst it would stand still for more than {goals.max_downtime_ms} ms"


def _rates(course: Course) -> str:
    dirty, rate = max(course.load.dirty.expected, course.load.doubted), course.link.rate.expected
    return f"the guest may write {dirty / MIB:.1f} MiB/s, the link moves {rate / MIB:.1f} MiB/s"


def predicted_words(predicted: Prediction) -> str:
    """The prediction as a sentence."""
    sent = predicted.bytes_transferred
    return (
        f"predicted: {ms_words(predicted.total_ms)} in all, {ms_words(predicted.downtime_ms)} of it standing still, "
        f"{sent.expected / MIB:.0f} MiB sent ({sent.low / MIB:.0f} to {sent.high / MIB:.0f})"
    )


def ms_words(range_: Range) -> str:
    """Milliseconds with their bar, in the unit that fits."""
    unit, part = ("s", 1000.0) if range_.expected >= 1000 else ("ms", 1.0)
    low, mid, high = (value / part for value in msgspec.structs.astuple(range_))
    digits = 1 if unit == "s" else 0
    return f"{mid:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"
