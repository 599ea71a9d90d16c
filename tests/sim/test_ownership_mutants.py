"""Every rule of ownership, broken alone, is noticed by the simulator: else it would guard nothing.

Each mutant says among how many seeds it must be noticed, from where on; most are within the first few.
"""

from __future__ import annotations

import pytest

from tests.sim.ownership.mutants import MUTANTS, Mutant
from tests.sim.ownership.world import World


def first_noticed(mutant: Mutant) -> int | None:
    with mutant.applied():
        for seed in range(mutant.first, mutant.first + mutant.seeds):
            if World(seed, list(mutant.plan) or None, mutant.options).run().violations:
                return seed
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    assert first_noticed(mutant) is not None


def test_the_same_runs_show_nothing_where_no_rule_is_broken() -> None:
    """What the mutants are noticed by is not the plan or the kind of cluster."""
    for mutant in MUTANTS:
        if mutant.breaks and (mutant.plan or mutant.options.classes):
            assert World(mutant.first, list(mutant.plan) or None, mutant.options).run().violations == [], mutant.rule
