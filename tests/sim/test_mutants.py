"""Rules broken on purpose: each mutant must be seen by the checks that guard the whole, or they are no good."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.arrivals import Arrivals
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.member import Member
from novacron.control.store.kinds import IMAGES
from novacron.control.vms.decide import machine_spec
from novacron.errors import MonitorFailed, NovaCronError, StaleGeneration
from novacron.model.machine import MachineReport
from novacron.model.migration import MigrationState
from novacron.wire import agent as wire
from novacron.wire import moving
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio

DISCARD = Arrivals.discard


async def discard_believing_anything(self: Arrivals, args: moving.Discard) -> None:
    """Says that a machine never ran here, though it took over."""
    holding = self._ledger.get(args.vm_id)
    if holding is None or holding.role is not Role.OWNED:
        await DISCARD(self, args)


def check_nothing(self: Ledger, vm_id: str, generation: int) -> Holding | None:
    """Listens to whoever speaks, of whatever ownership."""
    return self.get(vm_id)


def obey_everything(self: Member, vm_id: str, generation: int, epoch: int, floor: int) -> None:
    """Any order counts, of whatever generation and epoch."""


async def answer_lost_after_taking_over(h: House) -> None:
    vm_id = await h.running_vm("a")
    h.cluster["b"].host.fail("take_over", MonitorFailed("answer lost in the monitor"), after=True)
    await h.ended(await h.migrate(vm_id, "b"))


async def test_a_target_that_ran_must_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path / "right") as h:
        await answer_lost_after_taking_over(h)
        assert h.cluster.world.violations == []
    monkeypatch.setattr(Arrivals, "discard", discard_believing_anything)
    async with house(tmp_path / "mutant") as h:
        await answer_lost_after_taking_over(h)
        assert h.cluster.world.violations != []


async def late_start_at_the_old_owner(h: House) -> None:
    """A start that was long on its way reaches the source after the machine has moved."""
    vm_id = await h.running_vm("a")
    before = h.vm(vm_id)
    spec = machine_spec(before, h.records.find(IMAGES, before.spec.image_id).record)
    assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
    await h.cluster.call(h.cluster["a"].node_id, wire.Start(spec=spec), MachineReport, deadline_s=5.0)


async def test_ownership_that_has_passed_must_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path / "right") as h:
        with pytest.raises(StaleGeneration):
            await late_start_at_the_old_owner(h)
        assert h.cluster.world.violations == []
    monkeypatch.setattr(Ledger, "check", check_nothing)
    monkeypatch.setattr(Member, "check", obey_everything)
    async with house(tmp_path / "mutant") as h:
        with pytest.raises(NovaCronError):
            await late_start_at_the_old_owner(h)
        assert h.cluster.world.violations != []
