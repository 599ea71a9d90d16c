"""What the earlier moves of a VM tell about its next: how much of its memory is blank, how fast it writes. Pure.

Before a move the hypervisor says what it holds of the memory, which includes pages of zeros that cost nothing to send,
and samples what is written, which reads low for some guests and right for others. What was sent in the end knows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from novacron.control.migrations.history import MIB
from novacron.model.migration import Migration, MigrationKind, Strategy
from novacron.model.prediction import Measurement, Range

DIRTIED_BIAS = Range(1.0, 2.0, 3.0)
"""By how much sampling reads low. Measured before a move, rates were two to three times too low (KubeVirt VEP 246)."""
KEPT = 10
SHRINKING = 0.5
"""Of a guest that wrote more than this part of what the link carried, what was sent says only that it wrote no less."""
STOOD = 0.1
"""Of a guest that stood still for more than this part of the sending, much was sent that it could not write again."""
BELIEVED = Range(0.25, 1.0, 4.0)
"""Between these a move is believed to tell how sampling reads; beyond them something else was the matter."""
MOST_BLANK = 0.75


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """blank: the bytes that are held and cost nothing to send. bias: by how much sampling reads low."""

    blank: float = 0.0
    bias: Range = DIRTIED_BIAS
    basis: str = ""


class _Seen(msgspec.Struct, frozen=True):
    """One earlier move with its measurement."""

    migration: Migration
    measured: Measurement
    sent: int
    sending_s: float

    @property
    def wrote_nothing(self) -> bool:
        """Whether every page was sent once."""
        return self.migration.kind is MigrationKind.WARM or not self.measured.dirtied_bytes


def habits(past: Sequence[Migration], vm_id: str) -> Habits:
    """What is known of that VM; how sampling reads also from other VMs, for one whose own moves do not tell.

    past: as `history.completed` answers. Nothing is known: what is usual.
    """
    moves: dict[str, list[_Seen]] = {}
    for one in _seen(past):
        moves.setdefault(one.migration.vm_id, []).append(one)
    own = moves.pop(vm_id, [])
    blank, biases = _blank(own), _biases(own)
    whose = "it"
    if not biases:
        biases, whose = [bias for others in moves.values() for bias in _biases(others)], "what moved"
    if not biases:
        return Habits(blank=blank, basis=_words(blank, "") if own else "")
    expected = statistics.median([*biases, DIRTIED_BIAS.expected])  # a single move is not believed alone
    bias = Range(min([*biases, expected]), expected, max([*biases, DIRTIED_BIAS.high]))
    return Habits(
        blank=blank, bias=bias, basis=_words(blank, f", {whose} wrote {expected:.1f} times what sampling says")
    )


def in_use(measured: Measurement, habits: Habits) -> float:
    """The bytes that have to be sent once."""
    return max(measured.memory_used_bytes - habits.blank, measured.memory_used_bytes * (1 - MOST_BLANK))


def _seen(moves: Iterable[Migration]) -> Iterable[_Seen]:
    for one in moves:
        figures = one.figures
        sent, took_ms = figures.stream_bytes or figures.bytes_transferred, figures.transfer_ms  # not what a proxy saved
        if one.measured and sent and took_ms and one.kind is not MigrationKind.COLD:
            yield _Seen(one, one.measured, sent, (took_ms - (figures.setup_ms or 0.0)) / 1e3)


def _blank(seen: Sequence[_Seen]) -> float:
    """Of moves in which every page was sent once; 0: there were none."""
    blanks = [one.measured.memory_used_bytes - one.sent for one in seen[-KEPT:] if one.wrote_nothing]
    return max(0.0, statistics.median(blanks)) if blanks else 0.0


def _biases(seen: Sequence[_Seen]) -> list[float]:
    blank = _blank(seen)
    return [bias for one in seen[-KEPT:] if (bias := _bias(one, blank)) is not None]


def _bias(seen: _Seen, blank: float) -> float | None:
    """What it wrote while it moved, by what sampling had said; None: this move does not tell."""
    measured, migration = seen.measured, seen.migration
    if seen.wrote_nothing or migration.goals.max_slowdown_percent or seen.sending_s <= 0:
        return None
    if (migration.figures.downtime_stopped_ms or 0.0) / 1e3 > seen.sending_s * STOOD:
        return None
    rate = seen.sent / seen.sending_s
    once = in_use(measured, Habits(blank=blank))
    # In post-copy it only writes here during the first pass.
    writing_s = once / rate if migration.strategy is Strategy.POSTCOPY else seen.sending_s
    wrote = max(0.0, seen.sent - once) / writing_s
    if wrote > rate * SHRINKING:
        return None
    bias = wrote / (measured.dirtied_bytes / measured.interval_s)
    return min(max(bias, BELIEVED.low), BELIEVED.high)


def _words(blank: float, more: str) -> str:
    return f"by earlier moves {blank / MIB:.0f} MiB of it are blank{more}"
