"""The fake driver's signs of life: what a machine's guest answers, and its clock."""

from __future__ import annotations

from novacron.model.machine import MachineStatus
from novacron.model.verdict import CLOCK, HEARTBEAT, Check, Outcome, Signs
from novacron.testing.fake_world import FakeMachine

OFF_MS = 1000.0


def examined(machine: FakeMachine) -> Signs:
    """As a guest with an agent answers; one that is dumb, or does not run, does not."""
    if machine.is_dumb or machine.report.status is not MachineStatus.RUNNING:
        silence = [
            Check(name=name, outcome=Outcome.NOT_CHECKED, evidence="nobody answers") for name in (HEARTBEAT, CLOCK)
        ]
        return Signs(checks=tuple(silence))
    beat = Check(name=HEARTBEAT, outcome=Outcome.PASSED, evidence="its guest answers")
    off_ms, machine.clock_off_ms = machine.clock_off_ms, 0.0
    clock = Check(name=CLOCK, outcome=Outcome.PASSED, evidence=f"the guest's clock was {off_ms:g} ms off")
    after = 0.0 if abs(off_ms) > OFF_MS else None
    return Signs(checks=(beat, clock), clock_off_ms=off_ms, clock_off_after_ms=after)
