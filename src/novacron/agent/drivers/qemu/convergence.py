"""Whether a pre-copy gets anywhere, and what to do when it does not: go on, post-copy, stop the guest, give up. Pure.

What counts is how much is left each time QEMU has gone through memory once more: the residue that the next pass must
send. Its smoothed course tells a guest that writes faster than the link carries from one that does so for a moment.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from novacron.model.migration import Goals, Strategy, Tactics

MEMORY_SHARE = 0.3
"""The part of the downtime goal QEMU may spend on memory; the rest is for device state, the two-stopped hand-off and
the network. With 30 ms of 100 the guest stood still for 14 to 54 ms."""

SMOOTHING = 0.4  # the weight of the newest residue
SHRINKS_BY = 0.03
PATIENCE = 4  # passes without that much
PATIENCE_S = 1.0  # a small guest has many passes a second
PREDICTED_FROM = 3  # residues
HYBRID_BOUND_S = 60.0
HOPELESS = 30  # passes
HOPELESS_S = 120.0
THROTTLE_FROM_PERCENT = 20
THROTTLE_STEP_PERCENT = 10
PASSES_A_STEP = 2  # QEMU raises the throttle after two passes that were dirtied too fast
KEPT = 64


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a transfer. iteration: the pass through memory it is in; the first is 1."""

    at_s: float
    remaining_bytes: int
    transferred_bytes: int
    dirty_bytes_per_s: float
    rate_bytes_per_s: float
    iteration: int


class Keep(msgspec.Struct, frozen=True):
    """Go on as it is."""

    reason: str


class SwitchToPostcopy(msgspec.Struct, frozen=True):
    """The guest goes on at the target now, and what is missing of its memory follows."""

    reason: str


class StopGuest(msgspec.Struct, frozen=True):
    """The guest stands still until the rest is sent."""

    reason: str


class GiveUp(msgspec.Struct, frozen=True):
    """The guest stays where it is."""

    reason: str


Decision = Keep | SwitchToPostcopy | StopGuest | GiveUp
History = tuple[Sample, ...]


def noted(history: History, sample: Sample) -> History:
    """The history with this look: the first of every pass is kept, and the newest."""
    newest_repeats = len(history) > 1 and history[-1].iteration == history[-2].iteration
    return ((*history[:-1], sample) if newest_repeats else (*history, sample))[-KEPT:]


def decide(history: History, goals: Goals, tactics: Tactics, finish_by_s: float) -> Decision:
    """What to do now. finish_by_s: when it is given up, on the clock of the samples.

    Nothing is decided in the first pass: until it is over, no memory has been sent twice.
    """
    if not history or history[-1].iteration < 2:
        return Keep("the first pass is under way")
    if tactics.strategy is Strategy.POSTCOPY:
        return SwitchToPostcopy("all memory has been sent once")
    course = _Course(history, goals)
    if course.arrives:
        return Keep("what is left fits into the downtime asked for")
    now_s = history[-1].at_s
    patience = PATIENCE + PASSES_A_STEP * _throttle_steps(tactics)
    stalled = course.flat_passes >= patience and course.flat_s >= PATIENCE_S
    why = course.words if stalled else ""
    if not why and course.predicted_s is not None:
        bound_s = finish_by_s - now_s
        if tactics.strategy is Strategy.HYBRID:
            bound_s = min(bound_s, HYBRID_BOUND_S)
        if course.predicted_s > bound_s and course.passes >= patience:
            why = f"pre-copy would take {course.predicted_s:.0f} s more, and {max(bound_s, 0.0):.0f} s is the most"
    if why and tactics.strategy is Strategy.HYBRID:
        return SwitchToPostcopy(why)
    if why and tactics.may_pause:
        return StopGuest(why)
    if course.flat_passes >= max(HOPELESS, patience) and course.flat_s >= HOPELESS_S:
        return GiveUp(course.words)
    return Keep(why or "what is left shrinks")


def _throttle_steps(tactics: Tactics) -> int:
    """How often QEMU may still slow the guest down before that is all it does."""
    most = throttle_percent(tactics)
    return 0 if not most else 1 + max(0, math.ceil((most - THROTTLE_FROM_PERCENT) / THROTTLE_STEP_PERCENT))


def throttle_percent(tactics: Tactics) -> int:
    """How much of its time the guest may be kept waiting. At 99 % it stands still for a second at a time."""
    return min(90, tactics.max_throttle_percent)


def memory_ms(goals: Goals) -> int:
    """How long the guest may stand still for what is left of its memory; 0: for as long as it takes."""
    return max(1, round(goals.max_downtime_ms * MEMORY_SHARE)) if goals.max_downtime_ms else 0


class _Course:
    """Where the residues lead. flat_passes, flat_s: since when they have not shrunk by enough."""

    def __init__(self, history: History, goals: Goals) -> None:
        self._newest = history[-1]
        firsts = [seen for before, seen in itertools.pairwise(history) if seen.iteration > before.iteration]
        if history[0].iteration >= 2:
            firsts.insert(0, history[0])
        self._link = _link_bytes_per_s(history)
        self.passes = len(firsts)
        self.flat_passes, since_s, self._smoothed = _flat(firsts)
        self.flat_s = self._newest.at_s - since_s
        fits = math.inf if not goals.max_downtime_ms else self._link * memory_ms(goals) / 1e3
        self.arrives = firsts[-1].remaining_bytes <= fits
        self.predicted_s = self._predict(fits)

    @property
    def words(self) -> str:
        dirty = self._newest.dirty_bytes_per_s or self._link
        return (
            f"pre-copy would not end: the guest writes {dirty / 2**20:.1f} MiB/s, "
            f"the link moves {self._link / 2**20:.1f} MiB/s"
        )

    def _predict(self, fits: float) -> float | None:
        """Seconds until the residue fits, if it goes on shrinking so; None: it does not, or it is too early to say."""
        course = self._smoothed[-PREDICTED_FROM:]
        if len(course) < PREDICTED_FROM or not self._link or course[-1] >= course[0]:
            return None
        ratio = max((course[-1] / course[0]) ** (1 / (len(course) - 1)), 0.01)
        passes = math.ceil(math.log(max(fits, 1.0) / max(course[-1], 1.0), ratio))
        return 0.0 if passes <= 0 else course[-1] / self._link * (1 - ratio**passes) / (1 - ratio)


def _flat(firsts: list[Sample]) -> tuple[int, float, list[float]]:
    """For how many passes and since when the smoothed residue has not shrunk by enough, and its course."""
    smoothed = [float(firsts[0].remaining_bytes)]
    best, since_s, passes = smoothed[0], firsts[0].at_s, 0
    for seen in firsts[1:]:
        smoothed.append(SMOOTHING * seen.remaining_bytes + (1 - SMOOTHING) * smoothed[-1])
        if smoothed[-1] < best * (1 - SHRINKS_BY):
            best, since_s, passes = smoothed[-1], seen.at_s, 0
        else:
            passes += 1
    return passes, since_s, smoothed


def _link_bytes_per_s(history: History) -> float:
    """What the link carried over the last passes; before they can tell, QEMU's own count."""
    before, newest = history[max(0, len(history) - 1 - PREDICTED_FROM)], history[-1]
    seconds, moved = newest.at_s - before.at_s, newest.transferred_bytes - before.transferred_bytes
    return moved / seconds if seconds > 0 and moved > 0 else newest.rate_bytes_per_s
