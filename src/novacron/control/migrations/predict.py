"""What a move will cost: total time, downtime, bytes, each at its best, as expected, at its worst. Pure.

Memory M travels at B bytes/s while the guest writes at D. In t seconds it writes min(W, D·t) different bytes, W being
what it writes to at all. So after a pass of M/B seconds that much is left, and so on, until what is left fits into the
stop (it ends), or shrinks no more (it does not). A guest that does not come to an end can be slowed down (D falls), be
run on the target before its memory is there (post-copy: one more pass), or stand still for what is left.

Sampling counts different pages within a second, so it reads low for a guest that writes the same pages again and
again, and cannot tell one that soon has written all it ever writes from one that always writes new ones.
"""

from __future__ import annotations

import msgspec

from novacron.control.migrations.habits import DIRTIED_BIAS, Habits, in_use
from novacron.control.migrations.history import MIB, Costs, Link
from novacron.model.migration import Goals
from novacron.model.prediction import Measurement, Prediction, Range

MEMORY_SHARE = 0.3
"""The part of the downtime goal that hypervisors may spend on memory; see the driver's convergence."""
MAX_PASSES = 200
SHRINKS_TO = 0.97
FLAT_PASSES = 4
"""So many passes in vain until a driver does something else."""
WRITTEN_BEYOND = 4.0
"""A guest is expected to write, in all, to so many times what it writes to in a second."""
WITHIN_NODE = Range(30.0 * MIB, 200.0 * MIB, 1000.0 * MIB)
"""From one pool of a node into another, bytes a second: a file server's disks at worst."""
HERE_MS = Range(100.0, 400.0, 2000.0)
UNMEASURED_USE = Range(0.1, 0.5, 1.0)
UNMEASURED_DIRTY_PART_PER_S = Range(0.0, 0.01, 0.1)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as what has to be moved. dirty: bytes/s it writes, at first; written: all it ever writes to, in bytes.

    measured: else assumed. doubted: what it is taken to write, at least, where the question is whether it ends: what
    was learnt from moves that ended makes figures better, but lets none begin that would not end.
    """

    memory: Range
    dirty: Range
    written: Range
    basis: str
    measured: bool = True
    doubted: float = 0.0


class _Case(msgspec.Struct, frozen=True):
    """One of the three cases of everything."""

    memory: float
    dirty: float
    written: float
    rate: float


class _Course(msgspec.Struct, frozen=True):
    """How a pre-copy goes. passes_s: all of it but the last step; sent: bytes until then; left: for the last step."""

    passes_s: float
    sent: float
    left: float
    ends: bool


def load_of(measured: Measurement | None, memory_mib: int, *, runs: bool, habits: Habits = Habits()) -> Load:  # noqa: B008 (frozen)
    """The machine as it was measured and as its earlier moves had it, or as machines of that size may be."""
    memory = float(memory_mib * MIB)
    still = Range(0.0, 0.0, 0.0)
    if measured is None:
        used = Range(*(memory * part for part in msgspec.structs.astuple(UNMEASURED_USE)))
        dirty = Range(*(memory * part for part in msgspec.structs.astuple(UNMEASURED_DIRTY_PART_PER_S)))
        return Load(
            memory=used,
            dirty=dirty if runs else still,
            written=Range(dirty.low, dirty.expected * WRITTEN_BEYOND, memory) if runs else still,
            basis="memory and write rate: assumed, the machine was not measured",
            measured=False,
        )
    used_bytes = min(in_use(measured, habits), memory)
    used = Range(used_bytes * 0.8, used_bytes, min(memory, used_bytes * 1.1))
    seen = measured.dirtied_bytes / measured.interval_s
    if not runs:
        return Load(
            memory=used, dirty=still, written=still, basis=_and("memory: measured; it stands still", habits.basis)
        )
    return Load(
        memory=used,
        dirty=Range(*(seen * bias for bias in msgspec.structs.astuple(habits.bias))),
        written=Range(
            float(measured.dirtied_bytes),
            min(measured.dirtied_bytes * WRITTEN_BEYOND, max(used_bytes, measured.dirtied_bytes)),
            max(used_bytes, float(measured.dirtied_bytes)),
        ),
        doubted=seen * DIRTIED_BIAS.expected,
        basis=_and(
            f"memory: {used_bytes / MIB:.0f} MiB in use; writes: {seen / MIB:.1f} MiB/s by sampling for "
            f"{measured.interval_s:g} s, taken for {seen * habits.bias.expected / MIB:.1f}",
            habits.basis or "sampling reads low",
        ),
    )


def _and(words: str, more: str) -> str:
    return f"{words}; {more}" if more else words


def slowed(load: Load, percent: int) -> Load:
    """The machine kept waiting for that part of its time."""
    part = 1 - min(max(percent, 0), 99) / 100
    dirty = Range(*(rate * part for rate in msgspec.structs.astuple(load.dirty)))
    return msgspec.structs.replace(load, dirty=dirty, doubted=load.doubted * part)


def precopy(load: Load, link: Link, costs: Costs, goals: Goals, *, pauses: bool = False) -> Prediction:
    """Live. pauses: the guest stands still for what is left where it does not come to an end."""
    cases = _cases(load, link)
    low, mid, high = (_course(case, _stop_s(goals)) for case in cases)
    doubted = _course(_doubted(load, cases[1]), _stop_s(goals))
    if not doubted.ends:
        mid = doubted
    ends = mid.ends or pauses
    residue = _by_cases(link, low.left, mid.left, high.left)
    passes = Range(low.passes_s * 1e3, mid.passes_s * 1e3, high.passes_s * 1e3)
    longest_ms = goals.finish_within_s * 1e3
    total = costs.overhead.plus(passes).plus(residue)
    return Prediction(
        total_ms=_ordered(
            total if high.ends or pauses else Range(total.low, total.expected, max(total.high, longest_ms))
        ),
        downtime_ms=_ordered(costs.handover.plus(residue)),
        bytes_transferred=link.travelling(
            _ordered(Range(low.sent + low.left, mid.sent + mid.left, high.sent + high.left))
        ),
        ends=ends,
        ends_surely=high.ends or pauses,
        residue_ms=residue.expected,
        basis=(load.basis, link.basis, *costs.basis),
    )


def postcopy(load: Load, link: Link, costs: Costs) -> Prediction:
    """Live, switched over after the first pass: at most all that was written meanwhile follows."""
    first = [(case, case.memory / case.rate) for case in _cases(load, link)]
    rest = [min(case.written, case.dirty * took_s, case.memory) for case, took_s in first]
    passes = Range(*((took_s + left / case.rate) * 1e3 for (case, took_s), left in zip(first, rest, strict=True)))
    sent = Range(*(case.memory + left for (case, _), left in zip(first, rest, strict=True)))
    return Prediction(
        total_ms=_ordered(costs.overhead.plus(passes)),
        downtime_ms=costs.postcopy,
        bytes_transferred=link.travelling(_ordered(sent)),
        basis=(load.basis, link.basis, *costs.basis),
    )


def hybrid(load: Load, link: Link, costs: Costs, goals: Goals) -> Prediction:
    """Live, by pre-copy for as long as that gets anywhere; what is left then follows after the switch."""
    low, mid, high = (_course(case, _stop_s(goals)) for case in _cases(load, link))
    passes = Range(low.passes_s * 1e3, mid.passes_s * 1e3, high.passes_s * 1e3)
    rest = _by_cases(link, low.left, mid.left, high.left)
    return Prediction(
        total_ms=_ordered(costs.overhead.plus(passes).plus(rest)),
        downtime_ms=costs.handover.plus(rest) if mid.ends else costs.postcopy,
        bytes_transferred=_ordered(Range(low.sent + low.left, mid.sent + mid.left, high.sent + high.left)),
        residue_ms=rest.expected if mid.ends else 0.0,
        basis=(load.basis, link.basis, *costs.basis),
    )


def warm(load: Load, link: Link, costs: Costs) -> Prediction:
    """The guest stands still while all of it travels."""
    stream = Range(*(case.memory / case.rate * 1e3 for case in _cases(load, link)))
    return Prediction(
        total_ms=costs.overhead.plus(stream),
        downtime_ms=costs.handover.plus(stream),
        bytes_transferred=link.travelling(load.memory),
        residue_ms=stream.expected,
        basis=(load.basis, link.basis, *costs.basis),
    )


def cold(costs: Costs, *, at_rest: bool) -> Prediction:
    """Shut down here, booted there; no memory travels. At rest nothing stands still, for nothing runs."""
    nothing = Range(0.0, 0.0, 0.0)
    if at_rest:
        return Prediction(total_ms=Range(5.0, 100.0, 1000.0), downtime_ms=nothing, bytes_transferred=nothing)
    return Prediction(
        total_ms=costs.overhead.plus(costs.reboot),
        downtime_ms=costs.reboot,
        bytes_transferred=nothing,
        basis=("the guest's own shutdown and boot are most of it",),
    )


def here(disk_bytes: int) -> Prediction:
    """Disks from one pool of a node into another; the guest stands still at no time."""
    nothing = Range(0.0, 0.0, 0.0)
    slow, usual, fast = msgspec.structs.astuple(WITHIN_NODE)
    copying = Range(disk_bytes / fast * 1e3, disk_bytes / usual * 1e3, disk_bytes * 1.5 / slow * 1e3)
    return Prediction(
        total_ms=HERE_MS.plus(copying),
        downtime_ms=nothing,
        bytes_transferred=nothing,
        disk_bytes=disk_bytes,
        basis=(f"disks: {disk_bytes / MIB:.0f} MiB at {usual / MIB:.0f} MiB/s, assumed within a node",),
    )


def with_disks(predicted: Prediction, disk_bytes: int, link: Link) -> Prediction:
    """The same, with so many bytes of disks copied first while the guest runs (and, at its worst, half as many again,
    for what it writes meanwhile). They are counted apart from the bytes of memory.
    """
    copying = _by_cases(link, disk_bytes, disk_bytes, disk_bytes * 1.5)
    return msgspec.structs.replace(
        predicted,
        total_ms=predicted.total_ms.plus(copying),
        disk_bytes=disk_bytes,
        basis=(*predicted.basis, f"disks: {disk_bytes / MIB:.0f} MiB at the link's rate"),
    )


def _stop_s(goals: Goals) -> float:
    """For how long the guest may stand still for memory alone; 0 asks for no bound."""
    return goals.max_downtime_ms / 1e3 * MEMORY_SHARE if goals.max_downtime_ms else float("inf")


def _cases(load: Load, link: Link) -> tuple[_Case, _Case, _Case]:
    """At its best, as expected, at its worst. Slow links are the worst."""
    return (
        _Case(load.memory.low, load.dirty.low, load.written.low, link.rate.high),
        _Case(load.memory.expected, load.dirty.expected, load.written.expected, link.rate.expected),
        _Case(load.memory.high, load.dirty.high, load.written.high, link.rate.low),
    )


def _doubted(load: Load, expected: _Case) -> _Case:
    return msgspec.structs.replace(expected, dirty=max(expected.dirty, load.doubted))


def _course(case: _Case, stop_s: float) -> _Course:
    """Pass after pass until what is left fits, or is found to shrink no more."""
    left, sent, passes_s, flat = case.memory, 0.0, 0.0, 0
    for _ in range(MAX_PASSES):
        took_s = left / case.rate
        sent, passes_s = sent + left, passes_s + took_s
        before, left = left, min(case.written, case.dirty * took_s, case.memory)
        if left / case.rate <= stop_s:
            return _Course(passes_s, sent, left, ends=True)
        flat = flat + 1 if left > before * SHRINKS_TO else 0
        if flat > FLAT_PASSES:
            break
    return _Course(passes_s, sent, left, ends=False)


def _by_cases(link: Link, low: float, mid: float, high: float) -> Range:
    """Bytes as milliseconds on the link, the most of them on the slowest."""
    return Range(low / link.rate.high * 1e3, mid / link.rate.expected * 1e3, high / link.rate.low * 1e3)


def _ordered(range_: Range) -> Range:
    """A worse case may end in fewer bytes left than a better one: the bar holds both."""
    values = msgspec.structs.astuple(range_)
    return Range(min(values), range_.expected, max(values))
