"""What past migrations of this cluster tell about the next: how fast a link is, what a move costs beside memory. Pure.

The newest count most. What was never seen has a default that says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import msgspec

from novacron.model.link import CAPPED_FROM, LinkFigure
from novacron.model.migration import Goals, Migration, MigrationKind, MigrationState
from novacron.model.prediction import FEW, Range, spread

MIB = 1 << 20
SMOOTHING = 0.3
"""The weight of the newest figure."""
KEPT = 50
TELLING_BYTES = 32 * MIB
"""A stream of less is over before it has its speed."""
FRESH = datetime.timedelta(hours=1)
"""A stream or a probe of a link that is older is not the last word on it."""
PROBED_LOW, PROBED_HIGH = 0.6, 1.3
"""What a stream may have of what a burst of a second had."""

UNKNOWN_LINK = Range(30.0 * MIB, 100.0 * MIB, 400.0 * MIB)
"""1 Gbit/s, less what TLS and framing take: no node is connected by less, on purpose."""
OVERHEAD_MS = Range(300.0, 900.0, 3000.0)
"""From the request to the stream, and from its end to the last step: a target QEMU started, figures read."""
HANDOVER_MS = Range(8.0, 25.0, 80.0)
"""Device state saved and loaded, the last word of each side, one write to the store."""
POSTCOPY_SWITCH_MS = Range(20.0, 60.0, 250.0)
"""The same where the ownership moves before the state does: one way more between the two stops."""
SHUTDOWN_MS = Range(1000.0, 10_000.0, 60_000.0)
BOOT_MS = Range(500.0, 10_000.0, 60_000.0)


PACKS = Range(1.5, 4.0, 12.0)
"""How many times fewer bytes the stream proxies send, before that was seen: from memory that hardly packs and is new to
the target, to guests of whose pages it holds two thirds (docs/migration-wan.md)."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What the stream from one node to another carries, in bytes a second; basis: how that is known.

    packs: how many times fewer bytes travel than the stream has.
    """

    rate: Range
    basis: str
    packs: Range = Range(1.0, 1.0, 1.0)

    def travelling(self, sent: Range) -> Range:
        """What of so many bytes of the stream goes over the wire."""
        return Range(sent.low / self.packs.high, sent.expected / self.packs.expected, sent.high / self.packs.low)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What moves cost beside memory, in milliseconds. overhead: with the guest running, downtime: without.

    handover: of a guest whose memory is there whole; postcopy: of one whose is not; reboot: shut down and booted.
    """

    overhead: Range = OVERHEAD_MS
    handover: Range = HANDOVER_MS
    postcopy: Range = POSTCOPY_SWITCH_MS
    reboot: Range = SHUTDOWN_MS.plus(BOOT_MS)
    basis: tuple[str, ...] = ()


def completed(migrations: Iterable[Migration]) -> list[Migration]:
    """Those whose figures count, oldest first."""
    ended = [one for one in migrations if one.state is MigrationState.COMPLETED and not one.at_rest]
    return sorted(ended, key=lambda one: one.updated_at)


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """Links that were measured for themselves, and what time it is."""

    figures: Sequence[LinkFigure] = ()
    now: datetime.datetime | None = None

    def newest(self, one: str, other: str) -> LinkFigure | None:
        """Of that link, either way."""
        found = [figure for figure in self.figures if {figure.source_node, figure.target_node} == {one, other}]
        return max(found, key=lambda figure: figure.at, default=None)

    def ago(self, at: datetime.datetime) -> str:
        """How long that was ago, in words; empty: that is not known."""
        if self.now is None:
            return ""
        minutes = max(0, round((self.now - at).total_seconds() / 60))
        return f" {minutes} min ago" if minutes < 120 else f" {minutes // 60} h ago"

    def is_fresh(self, at: datetime.datetime) -> bool:
        return self.now is None or self.now - at <= FRESH


def is_known(past: Sequence[Migration], source: str, target: str, probes: Probes, cap: int = 0) -> bool:
    """Whether something fresh tells what the link carries, as far as a stream of that cap (0: none) could want it.

    past: as `completed` answers.
    """
    moves, probe = _moves(past, source, target), probes.newest(source, target)
    if moves and probes.is_fresh(moves[-1].updated_at):
        return True
    if probe is None or not probes.is_fresh(probe.at):
        return False
    return not probe.is_capped or 0 < cap <= probe.cap_bytes_per_s


def link(
    past: Sequence[Migration],
    source: str,
    target: str,
    goals: Goals,
    probes: Probes = Probes(),  # noqa: B008 (frozen)
) -> Link:
    """What the link carries: as seen, either way, else a default; never more than the goals allow.

    Moves count more than a probe, unless they are old and it is newer. past: as `completed` answers.
    """
    moves, probe = _moves(past, source, target), probes.newest(source, target)
    if probe is not None and (probe.is_capped or (moves and not _is_overtaken(moves[-1], probe, probes))):
        probe = None
    if probe is not None:
        probed = probe.rate_bytes_per_s
        rate = Range(probed * PROBED_LOW, probed, probed * PROBED_HIGH)
        words = f"measured{probes.ago(probe.at)}, round trip {probe.rtt_ms:.1f} ms"
        basis = f"link: {rate.expected / MIB:.0f} MiB/s, {words}"
    elif moves:
        rate = _smoothed([had for one in moves if (had := _rate(one))])
        last = f", the last{ago}" if (ago := probes.ago(moves[-1].updated_at)) else ""
        words = f"as {len(moves)} earlier moves between the two nodes had it{last}"
        basis = f"link: {rate.expected / MIB:.0f} MiB/s, {words}"
    else:
        rate = UNKNOWN_LINK
        basis = f"link: {rate.expected / MIB:.0f} MiB/s assumed: nothing has moved between the two nodes yet"
    cap = goals.bandwidth_bytes_per_s
    if cap and cap < rate.expected:
        basis = f"link: {cap / MIB:.1f} MiB/s: the goals allow no more"
    return Link(rate=rate.at_most(cap) if cap else rate, basis=basis)


def packs(past: Sequence[Migration], vm_id: str) -> Range:
    """How many times fewer bytes went through the stream proxies: of this VM, else of any, else a default.

    past: as `completed` answers.
    """
    seen = [
        (one.vm_id, one.figures.stream_bytes / one.figures.bytes_transferred)
        for one in past
        if one.figures.stream_bytes and one.figures.bytes_transferred
    ][-KEPT:]
    own = [ratio for owner, ratio in seen if owner == vm_id]
    return spread(own or [ratio for _, ratio in seen], PACKS)


def costs(past: Sequence[Migration]) -> Costs:
    """What moves of this cluster have cost beside memory. past: as `completed` answers."""
    past = [one for one in past if not one.disks]  # the time of copying them is counted by their bytes
    streamed = [one for one in past if one.kind is not MigrationKind.COLD][-KEPT:]
    whole = [one for one in streamed if not _was_postcopied(one)]
    overhead = [
        one.figures.total_ms - one.figures.transfer_ms + (one.figures.setup_ms or 0.0)  # no stream has its rate in it
        for one in streamed
        if one.figures.total_ms is not None and one.figures.transfer_ms is not None
    ]
    handover = [still for one in whole if one.kind is MigrationKind.LIVE and (still := _beside_memory(one)) is not None]
    postcopy = [still for one in streamed if _was_postcopied(one) and (still := _beside_memory(one)) is not None]
    reboot = [one.figures.downtime_stopped_ms for one in past if one.kind is MigrationKind.COLD][-KEPT:]
    sure = f"beside memory: as {len(overhead)} earlier moves of this cluster had it"
    return Costs(
        overhead=spread((max(0.0, one) for one in overhead), OVERHEAD_MS),
        handover=spread(handover, HANDOVER_MS),
        postcopy=spread(postcopy, POSTCOPY_SWITCH_MS),
        reboot=spread((one for one in reboot if one is not None), SHUTDOWN_MS.plus(BOOT_MS)),
        basis=(sure if overhead else "beside memory: assumed, nothing has moved in this cluster yet",),
    )


def _was_postcopied(migration: Migration) -> bool:
    return "open_postcopy" in migration.did


def _beside_memory(migration: Migration) -> float | None:
    """How much of its downtime was not the memory that was expected to be left."""
    still_ms = migration.figures.downtime_stopped_ms
    if still_ms is None:
        return None
    residue_ms = migration.predicted.residue_ms if migration.predicted else 0.0
    return max(still_ms - residue_ms, still_ms * 0.25)


def _moves(past: Sequence[Migration], source: str, target: str) -> list[Migration]:
    """Those that tell what the link carries, oldest first."""
    between = {source, target}
    return [one for one in past if {one.source_node, one.target_node} == between and _tells(one) and _rate(one)][-KEPT:]


def _is_overtaken(move: Migration, probe: LinkFigure, probes: Probes) -> bool:
    return probe.at > move.updated_at and not probes.is_fresh(move.updated_at)


def _rate(migration: Migration) -> float | None:
    """What the link carried. A stream through the proxies knows only when it kept the link full."""
    figures = migration.figures
    return figures.rate_bytes_per_s if figures.stream_bytes is None else figures.link_bytes_per_s


def _tells(migration: Migration) -> bool:
    cap, rate = migration.goals.bandwidth_bytes_per_s, _rate(migration)
    enough = (migration.figures.stream_bytes or migration.figures.bytes_transferred or 0) >= TELLING_BYTES
    if migration.paced_by:
        return False  # its rate is that of no one cap
    return rate is not None and enough and (not cap or rate < cap * CAPPED_FROM)


def _smoothed(rates: Sequence[float]) -> Range:
    """The smoothed rate, with the smoothed distance from it as its bar."""
    mean, off = rates[0], rates[0] * 0.25
    for rate in rates[1:]:
        off = SMOOTHING * abs(rate - mean) + (1 - SMOOTHING) * off
        mean = SMOOTHING * rate + (1 - SMOOTHING) * mean
    wide = 2.0 if len(rates) >= FEW else 3.0
    return Range(max(mean - wide * off, mean * 0.25), mean, mean + wide * off)
