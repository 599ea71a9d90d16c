"""Scorers: each gives a node that passed the filters a number from 0 (worst) to 1 (best)."""

from __future__ import annotations

from collections.abc import Callable

from novacron.control.scheduler.snapshot import Candidate, Limits, Need, free_memory_mib, free_vcpus

Scorer = Callable[[Need, Candidate, Limits], float]


def memory_left(need: Need, candidate: Candidate, limits: Limits) -> float:
    """The share of memory that stays free after placing."""
    facts = candidate.node.facts
    total_mib = facts.memory_mib if facts else 0
    return _share(free_memory_mib(candidate, limits) - need.memory_mib, total_mib)


def vcpus_left(need: Need, candidate: Candidate, limits: Limits) -> float:
    """The share of virtual CPUs that stays free after placing."""
    facts = candidate.node.facts
    return _share(
        free_vcpus(candidate, limits) - need.vcpus, int((facts.cpu_count if facts else 0) * limits.cpu_overcommit)
    )


def accelerated(need: Need, candidate: Candidate, limits: Limits) -> float:
    """1 where the hardware helps, 0 where instructions are translated."""
    facts = candidate.node.facts
    verdicts = [driver.accelerator for driver in facts.drivers if driver.name == need.driver] if facts else []
    return 1.0 if any(verdict is not None and verdict.name == "kvm" for verdict in verdicts) else 0.0


WEIGHTS: tuple[tuple[str, Scorer, float], ...] = (
    ("memory_left", memory_left, 1.0),
    ("vcpus_left", vcpus_left, 0.5),
    ("accelerated", accelerated, 1.0),
)


def _share(part: int, whole: int) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
