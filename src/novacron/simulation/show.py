"""A simulation's report for people: the timeline, then the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from novacron.cli import safe
from novacron.cli.output import table
from novacron.simulation.chronicle import Entry, Refusal
from novacron.simulation.summary import Report, Spread, Summary

MAX_DOWN = 10
MAX_REASONS = 5


def timeline(entries: Sequence[Entry]) -> str:
    """A line for each."""
    rows = [[_time(one.at_s), one.kind, one.subject, safe.line(one.text)] for one in entries]
    return table(["TIME", "KIND", "SUBJECT", "WHAT"], rows)


def summary(report: Report) -> str:
    """What it came to, a line for each figure."""
    return "\n".join(f"{title + ':':<16}{text}" if title else f"{'':16}{text}" for title, text in _lines(report))


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    found = report.summary
    who = (_many(found.nodes, "node"), _many(found.vms, "VM"), _many(found.servers, "server"))
    yield "scenario", f"{report.scenario}, seed {report.seed}: {', '.join(who)}, {_time(found.cost.virtual_s)}"
    yield from _availability(found)
    yield "nodes", f"{_many(found.fences, 'fence')}, {_many(found.takeovers, 'VM')} taken over"
    moves = found.migrations
    states = ", ".join(f"{count} {state}" for state, count in moves.by_state.items()) or "none"
    yield "migrations", f"{states}; {moves.bytes_transferred / 2**30:.1f} GiB; {_times(moves.durations)}"
    yield "requests", ", ".join(f"{count} {what}" for what, count in found.requests.items()) or "none"
    yield from _refusals(found.refusals)
    cost = found.cost
    speed = cost.virtual_s / cost.wall_s if cost.wall_s else 0.0
    yield "cost", f"{cost.wall_s:.1f} s wall, {cost.cpu_s:.1f} s CPU: {speed:.0f} times as fast as time"
    counts = f"{cost.store_commits} transactions, {cost.node_calls} calls to nodes, {cost.records_changed} changes"
    yield "", f"{counts}, {_many(cost.worker_failures, 'worker')} started again"
    yield "ran twice", "never" if not found.violations else f"{len(found.violations)} times"
    for one in found.violations:
        yield "", one


def _availability(found: Summary) -> Iterator[tuple[str, str]]:
    seen = found.availability
    yield "availability", f"{seen.percent:.4f} %: {seen.downtime_s:.1f} s down of {seen.wanted_s / 3600:.1f} VM hours"
    yield "restarts", _times(seen.restarts)
    if seen.pauses.count:
        yield "pauses", _times(seen.pauses)
    for one in seen.still_down[:MAX_DOWN]:
        yield "still down", f"{one.vm}, for {one.for_s:.0f} s"
    if len(seen.still_down) > MAX_DOWN:
        yield "", f"and {len(seen.still_down) - MAX_DOWN} more"


def _refusals(refusals: Sequence[Refusal]) -> Iterator[tuple[str, str]]:
    if not refusals:
        return
    codes = Counter(one.code for one in refusals)
    yield "refused", ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
    first = refusals[0]
    short = first.message.partition(":")[0] if first.reasons else first.message
    yield "", f"the first at {_time(first.at_s)}, {first.what}: {short}"
    for reason in first.reasons[:MAX_REASONS]:
        yield "", f"- {reason}"
    if len(first.reasons) > MAX_REASONS:
        yield "", f"and {len(first.reasons) - MAX_REASONS} more"


def _times(found: Spread) -> str:
    if not found.count:
        return "none"
    return f"{found.count}, p50 {found.p50_s:.1f} s, p95 {found.p95_s:.1f} s, longest {found.max_s:.1f} s"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _time(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes:02d}:{rest:04.1f}"
