"""The fake driver's honesty: what it must refuse and record, or simulations on it would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.errors import MachineDied, MigrationFailed, MonitorFailed, StateConflict
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Goals
from novacron.testing.fake_driver import FakeDriver, FakeHost, FakeWorld
from novacron.testing.hand_clock import HandClock

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
LAUNCH = Launch(spec=MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64), run_dir=Path("/run", VM))


class Pair:
    def __init__(self) -> None:
        self.world = FakeWorld(HandClock())
        self.hosts = [FakeHost(self.world, name) for name in ("a", "b")]
        self.a, self.b = (FakeDriver(host) for host in self.hosts)

    async def sent(self) -> Reception:
        """A machine that has left a and stands still on both."""
        await self.a.start(LAUNCH)
        to = await self.b.accept(LAUNCH, Awaited(migration_id="m", host="127.0.0.1"))
        await self.a.send(VM, "m", to, Goals(), lambda _: None)
        return to


async def test_a_second_running_copy_is_refused_and_recorded_for_ever() -> None:
    pair = Pair()
    await pair.a.start(LAUNCH)
    with pytest.raises(MonitorFailed, match="lock"):
        await pair.b.start(LAUNCH)
    assert pair.world.running(VM) == ["a"]
    assert len(pair.world.violations) == 1


async def test_a_paused_copy_holds_its_disks() -> None:
    pair = Pair()
    await pair.a.start(LAUNCH)
    await pair.a.pause(VM)
    with pytest.raises(MonitorFailed, match="lock"):
        await pair.b.start(LAUNCH)
    assert pair.world.violations == []


@pytest.mark.parametrize("target_first", [True, False])
async def test_both_stand_still_between_and_only_one_goes_on(target_first: bool) -> None:
    pair = Pair()
    await pair.sent()
    assert pair.world.running(VM) == []
    verbs = [lambda: pair.b.take_over(VM, "m", 2), lambda: pair.a.reclaim(VM, "m")]
    first, second = verbs if target_first else reversed(verbs)
    await first()
    with pytest.raises(MonitorFailed, match="lock"):
        await second()
    assert pair.world.running(VM) == ["b" if target_first else "a"]
    assert len(pair.world.violations) == 1


async def test_what_was_not_received_whole_does_not_run() -> None:
    pair = Pair()
    await pair.b.accept(LAUNCH, Awaited(migration_id="m", host="127.0.0.1"))
    with pytest.raises(MonitorFailed, match="whole"):
        await pair.b.take_over(VM, "m", 2)
    with pytest.raises(StateConflict):
        await pair.b.resume(VM)


async def test_a_stream_needs_the_right_key() -> None:
    pair = Pair()
    await pair.a.start(LAUNCH)
    to = await pair.b.accept(LAUNCH, Awaited(migration_id="m", host="127.0.0.1"))
    wrong = Reception(host=to.host, port=to.port, key_hex="00")
    with pytest.raises(MigrationFailed):
        await pair.a.send(VM, "m", wrong, Goals(), lambda _: None)
    assert pair.world.running(VM) == ["a"]


async def test_machines_outlive_their_driver_and_are_adopted_by_their_directory() -> None:
    pair = Pair()
    await pair.a.start(LAUNCH)
    heard: list[MachineReport] = []
    pair.a.subscribe(heard.append)
    await pair.a.close()
    heir = FakeDriver(pair.hosts[0])
    assert heir.reports() == []
    assert await heir.adopt([Path("/run/other")]) == []
    (adopted,) = await heir.adopt([LAUNCH.run_dir])
    assert adopted.status is MachineStatus.RUNNING
    pair.hosts[0].crash(VM)
    assert heard == []  # the old one lets go
    assert heir.report(VM) is not None


async def test_a_fault_strikes_once_at_its_moment() -> None:
    pair = Pair()
    pair.hosts[0].fail("stop", MachineDied("boom"), after=True)
    await pair.a.start(LAUNCH)
    with pytest.raises(MachineDied):
        await pair.a.stop(VM, StopMode.FORCED, 0)
    report = await pair.a.stop(VM, StopMode.FORCED, 0)
    assert report.status is MachineStatus.STOPPED
    await pair.a.forget(VM)
    assert pair.a.reports() == []
