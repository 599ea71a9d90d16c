"""Plans of faults drawn by Hypothesis, which makes a failing one as small as it can be.

NOVACRON_SIM_EXAMPLES=2000 tries more.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from tests.sim.ownership.faults import KINDS, LENGTHS_S, Fault
from tests.sim.ownership.mutants import MUTANTS
from tests.sim.ownership.world import World

EXAMPLES = int(os.environ.get("NOVACRON_SIM_EXAMPLES", "60"))
PLANS = st.lists(
    st.builds(
        Fault,
        at_s=st.integers(8, 70).map(float),
        kind=st.sampled_from(sorted(set(KINDS))),
        node=st.integers(0, 4),
        vm=st.integers(0, 3),
        length_s=st.sampled_from(LENGTHS_S),
        salt=st.integers(0, 50),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 300), PLANS)
def test_no_plan_of_faults_makes_a_vm_run_twice_or_stay_away(seed: int, plan: list[Fault]) -> None:
    world = World(seed, plan).run()
    assert world.violations == [], "\n".join(map(str, plan))


def test_a_plan_that_shows_a_broken_rule_is_made_small() -> None:
    """What a person gets to read is one fault, not a dozen."""
    mutant = next(one for one in MUTANTS if one.rule == "R5 no wait")
    with mutant.applied():
        smallest = find(
            PLANS,
            lambda plan: bool(World(3, plan).run(live=False).violations),
            settings=settings(
                max_examples=300, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
    assert len(smallest) == 1
