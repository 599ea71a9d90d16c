"""The driver contract: one suite for every driver. Each bed brings two hosts whose machines can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from novacron.agent.drivers.base import Driver, Launch
from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.clock import SystemClock
from novacron.errors import DriverError, MachineDied, MigrationFailed, NovaCronError, StateConflict
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Goals, Progress
from novacron.model.verdict import Outcome
from novacron.testing.fake_driver import FakeDriver, FakeHost, FakeWorld
from tests.system import rom_machine

pytestmark = pytest.mark.anyio
S = MachineStatus
GONE = (S.ABSENT, S.STOPPED, S.CRASHED)
LOOPBACK = "127.0.0.1"


class Place(Protocol):
    """One host of a bed."""

    def agent(self) -> Driver:
        """A driver there, as an agent process has one; the one before is let go of first."""
        ...

    async def restart(self) -> Driver:
        """The agent dies without a word, and another adopts what it finds."""
        ...

    def launch(self, vm_id: str) -> Launch: ...

    def broken(self, vm_id: str) -> Launch:
        """A launch whose hypervisor ends at once."""
        ...

    async def kill(self, vm_id: str) -> None:
        """End the machine's process behind the driver's back."""
        ...


class Bed(Protocol):
    one: Place
    other: Place

    def slow(self) -> Goals:
        """Goals under which a transfer takes far longer than a test."""
        ...

    def quick(self) -> Goals: ...


class QemuPlace:
    def __init__(self, host: rom_machine.Host) -> None:
        self.host = host
        self.driver = host.driver()

    def agent(self) -> Driver:
        return self.driver

    async def restart(self) -> Driver:
        await self.driver.close()
        self.driver = self.host.driver()
        await self.driver.adopt(self.host.run_dirs())
        return self.driver

    def launch(self, vm_id: str) -> Launch:
        return self.host.launch(vm_id, pages=20, wss=2048)

    def broken(self, vm_id: str) -> Launch:
        launch = self.launch(vm_id)
        empty = launch.run_dir / "empty.rom"
        empty.touch()
        return rom_machine.msgspec.structs.replace(launch, firmware=empty)

    async def kill(self, vm_id: str) -> None:
        report = self.driver.report(vm_id)
        assert report is not None
        rom_machine.kill(report.pid)


class QemuBed:
    def __init__(self, hosts: rom_machine.Hosts) -> None:
        self.one: Place = QemuPlace(hosts.new())
        self.other: Place = QemuPlace(hosts.new())

    def slow(self) -> Goals:
        return Goals(bandwidth_bytes_per_s=50_000)

    def quick(self) -> Goals:
        return Goals()


class FakePlace:
    def __init__(self, world: FakeWorld, name: str) -> None:
        self.host = FakeHost(world, name)
        self.driver = FakeDriver(self.host)

    def agent(self) -> Driver:
        return self.driver

    async def restart(self) -> Driver:
        await self.driver.close()
        self.driver = FakeDriver(self.host)
        await self.driver.adopt([Path("/run", vm_id) for vm_id in self.host.machines])
        return self.driver

    def launch(self, vm_id: str) -> Launch:
        spec = MachineSpec(vm_id=vm_id, generation=1, vcpus=1, memory_mib=32)
        return Launch(spec=spec, run_dir=Path("/run", vm_id))

    def broken(self, vm_id: str) -> Launch:
        self.host.fail("start", MachineDied("the process ended by itself: no such firmware"))
        return self.launch(vm_id)

    async def kill(self, vm_id: str) -> None:
        self.host.crash(vm_id)


class FakeBed:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world
        self.one: Place = FakePlace(world, "one")
        self.other: Place = FakePlace(world, "other")

    def slow(self) -> Goals:
        self._world.transfer_s = 60.0
        return Goals()

    def quick(self) -> Goals:
        self._world.transfer_s = 0.0
        return Goals()


@contextlib.asynccontextmanager
async def qemu_bed() -> AsyncIterator[Bed]:
    async with rom_machine.hosts() as hosts:
        yield QemuBed(hosts)


@contextlib.asynccontextmanager
async def fake_bed() -> AsyncIterator[Bed]:
    world = FakeWorld(SystemClock())
    try:
        yield FakeBed(world)
    finally:
        await world.close()


BEDS = {"qemu": qemu_bed, "fake": fake_bed}


@pytest.fixture(params=[pytest.param("qemu", marks=pytest.mark.system), "fake"])
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    if request.param == "qemu" and shutil.which(rom_machine.BINARY) is None:
        pytest.skip(f"{rom_machine.BINARY} is not installed")
    async with BEDS[request.param]() as made:
        yield made


class Heard:
    """What a listener was told."""

    def __init__(self, driver: Driver) -> None:
        self.statuses: list[MachineStatus] = []
        self.last: MachineReport | None = None
        driver.subscribe(self)

    def __call__(self, report: MachineReport) -> None:
        self.last = report
        self.statuses.append(report.status)


def nothing(_: Progress) -> None:
    """A listener who does not care."""


def status(driver: Driver, vm_id: str) -> MachineStatus:
    report = driver.report(vm_id)
    return report.status if report else S.ABSENT


async def sent(bed: Bed, vm_id: str, migration_id: str) -> None:
    """Started here, whole over there, both standing still."""
    await bed.one.agent().start(bed.one.launch(vm_id))
    to = await bed.other.agent().accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    await bed.one.agent().send(vm_id, migration_id, to, bed.quick(), nothing)


async def sending(bed: Bed, vm_id: str, migration_id: str) -> tuple[Reception, asyncio.Task[object]]:
    """Started here, and on its way at a pace that will not end."""
    await bed.one.agent().start(bed.one.launch(vm_id))
    to = await bed.other.agent().accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    moving = asyncio.Event()
    task: asyncio.Task[object] = asyncio.create_task(
        bed.one.agent().send(vm_id, migration_id, to, bed.slow(), lambda _: moving.set())
    )
    if isinstance(bed, QemuBed):
        await asyncio.wait({task, asyncio.create_task(moving.wait())}, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    return to, task


# -- a machine's life ----------------------------------------------------------------------------------------


async def test_it_says_what_it_can_do(bed: Bed) -> None:
    facts = await bed.one.agent().probe()
    assert facts.name
    assert facts.version
    assert facts.default_machine_types["q35"] in facts.machine_types
    assert facts.accelerator is not None
    assert facts.accelerator.reason


async def test_a_started_machine_runs_and_says_on_what(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    heard = Heard(driver)
    report = await driver.start(bed.one.launch(vm_id))
    assert report == driver.report(vm_id)
    assert (report.vm_id, report.generation, report.status) == (vm_id, 1, S.RUNNING)
    assert report.pid > 0
    assert "" not in (report.machine_type, report.cpu_model, report.accelerator)
    assert heard.statuses[-1] is S.RUNNING
    assert driver.reports() == [report]


async def test_started_again_it_is_the_same_machine(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    first = await driver.start(bed.one.launch(vm_id))
    assert await driver.start(bed.one.launch(vm_id)) == first


async def test_pause_and_resume_may_be_repeated(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    await driver.start(bed.one.launch(vm_id))
    heard = Heard(driver)
    for _ in range(2):
        assert (await driver.pause(vm_id)).status is S.PAUSED
    for _ in range(2):
        assert (await driver.resume(vm_id)).status is S.RUNNING
    assert heard.statuses == [S.PAUSED, S.RUNNING]


@pytest.mark.parametrize("mode", StopMode)
async def test_a_stopped_machine_is_gone_and_can_start_anew(bed: Bed, mode: StopMode) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    first = await driver.start(bed.one.launch(vm_id))
    heard = Heard(driver)
    for _ in range(2):
        report = await driver.stop(vm_id, mode, 0.2)
        assert (report.status, report.pid) == (S.STOPPED, 0)
    assert heard.statuses == [S.STOPPED]
    again = await driver.start(bed.one.launch(vm_id))
    assert again.status is S.RUNNING
    assert again.pid != first.pid


async def test_stopping_what_is_not_there_is_fine(bed: Bed) -> None:
    assert (await bed.one.agent().stop(rom_machine.an_id(), StopMode.FORCED, 0)).status is S.ABSENT


async def test_verbs_on_what_is_not_there_are_refused(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    for work in (driver.pause(vm_id), driver.resume(vm_id), driver.verify(vm_id)):
        with pytest.raises(NovaCronError):
            await work


async def test_measuring_changes_nothing(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    with pytest.raises(NovaCronError):
        await driver.measure(vm_id)
    before = await driver.start(bed.one.launch(vm_id))
    seen = await driver.measure(vm_id)
    assert 0 <= seen.dirtied_bytes <= seen.memory_bytes
    assert 0 < seen.memory_used_bytes <= seen.memory_bytes
    assert seen.interval_s > 0
    assert driver.report(vm_id) == before
    await driver.stop(vm_id, StopMode.FORCED, 0)
    with pytest.raises(StateConflict):
        await driver.measure(vm_id)


async def test_looking_changes_nothing_and_shows_no_life_in_what_stands_still(bed: Bed) -> None:
    vm_id, driver = rom_machine.an_id(), bed.one.agent()
    for look in (driver.look, driver.examine):
        with pytest.raises(NovaCronError):
            await look(vm_id)
    await driver.start(bed.one.launch(vm_id))
    assert (await driver.look(vm_id)).status is S.RUNNING
    await driver.pause(vm_id)
    assert {check.outcome for check in (await driver.examine(vm_id)).checks} == {Outcome.NOT_CHECKED}
    assert (await driver.look(vm_id)).status is S.PAUSED


async def test_adjusting_to_what_it_is_changes_nothing(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    launch = bed.one.launch(vm_id)
    report = await driver.start(launch)
    for _ in range(2):
        done = await driver.adjust(launch)
        assert (done.report, done.now, done.pending) == (report, launch.spec, ())


async def test_what_cannot_be_adjusted_now_is_a_reason_and_not_an_error(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    launch = bed.one.launch(vm_id)
    await driver.start(launch)
    more = msgspec.structs.replace(launch.spec, vcpus=4, memory_mib=4096)
    done = await driver.adjust(msgspec.structs.replace(launch, spec=more))
    assert {reason.subject for reason in done.pending} == {"vcpus", "memory_mib"}
    assert done.now == launch.spec
    assert status(driver, vm_id) is S.RUNNING


async def test_what_has_ended_or_never_was_is_not_adjusted(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    with pytest.raises(NovaCronError):
        await driver.adjust(bed.one.launch(vm_id))
    await driver.start(bed.one.launch(vm_id))
    await driver.stop(vm_id, StopMode.FORCED, 0)
    with pytest.raises(NovaCronError):
        await driver.adjust(bed.one.launch(vm_id))


async def test_a_paused_machine_stops(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    await driver.start(bed.one.launch(vm_id))
    await driver.pause(vm_id)
    assert (await driver.stop(vm_id, StopMode.GRACEFUL, 0.2)).status is S.STOPPED


async def test_only_an_ended_machine_can_be_forgotten(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    await driver.start(bed.one.launch(vm_id))
    with pytest.raises(StateConflict):
        await driver.forget(vm_id)
    assert status(driver, vm_id) is S.RUNNING
    await driver.stop(vm_id, StopMode.FORCED, 0)
    for _ in range(2):
        await driver.forget(vm_id)
    assert driver.report(vm_id) is None
    assert driver.reports() == []


async def test_one_that_dies_at_start_leaves_nothing(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    with pytest.raises(MachineDied) as died:
        await driver.start(bed.one.broken(vm_id))
    words = " ".join([died.value.message, *(reason.message for reason in died.value.reasons)])
    assert "firmware" in words or "bios" in words.lower() or "rom" in words.lower()
    assert status(driver, vm_id) in GONE
    assert (await driver.start(bed.one.launch(vm_id))).status is S.RUNNING


async def test_a_crash_is_told_with_its_reason(bed: Bed) -> None:
    driver, vm_id = bed.one.agent(), rom_machine.an_id()
    await driver.start(bed.one.launch(vm_id))
    heard = Heard(driver)
    await bed.one.kill(vm_id)
    await rom_machine.until(lambda: heard.statuses, "the report of the crash")
    assert heard.statuses == [S.CRASHED]
    assert heard.last is not None
    assert heard.last.reason
    assert heard.last.pid == 0


async def test_machines_outlive_their_agent(bed: Bed) -> None:
    vm_id, paused = rom_machine.an_id(), rom_machine.an_id()
    first = await bed.one.agent().start(bed.one.launch(vm_id))
    await bed.one.agent().start(bed.one.launch(paused))
    await bed.one.agent().pause(paused)
    driver = await bed.one.restart()
    found = driver.report(vm_id)
    assert found is not None
    assert (found.pid, found.status, found.machine_type) == (first.pid, S.RUNNING, first.machine_type)
    assert status(driver, paused) is S.PAUSED
    assert (await driver.pause(vm_id)).status is S.PAUSED
    assert (await driver.start(bed.one.launch(vm_id))).pid == first.pid
    assert (await driver.stop(vm_id, StopMode.FORCED, 0)).status is S.STOPPED


async def test_one_that_died_unseen_is_not_adopted_as_alive(bed: Bed) -> None:
    vm_id = rom_machine.an_id()
    await bed.one.agent().start(bed.one.launch(vm_id))
    await bed.one.kill(vm_id)
    driver = await bed.one.restart()
    assert status(driver, vm_id) in GONE
    assert (await driver.start(bed.one.launch(vm_id))).status is S.RUNNING


# -- migration -----------------------------------------------------------------------------------------------


async def test_a_target_waits_and_answers_the_same_again(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    driver = bed.other.agent()
    to = await driver.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    assert (to.host, to.port > 0, len(to.key_hex) >= 32) == (LOOPBACK, True, True)
    assert await driver.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK)) == to
    report = driver.report(vm_id)
    assert report is not None
    assert (report.status, report.migration_id) == (S.INCOMING, migration_id)
    driver = await bed.other.restart()
    assert status(driver, vm_id) is S.INCOMING
    assert await driver.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK)) == to


async def test_two_targets_have_two_keys(bed: Bed) -> None:
    driver = bed.other.agent()
    keys = set()
    for _ in range(2):
        launch = bed.other.launch(rom_machine.an_id())
        keys.add((await driver.accept(launch, Awaited(migration_id=rom_machine.an_id(), host=LOOPBACK))).key_hex)
    assert len(keys) == 2


async def test_a_machine_moves(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source, target = bed.one.agent(), bed.other.agent()
    before = await source.start(bed.one.launch(vm_id))
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    left, came = Heard(source), Heard(target)
    departure = await source.send(vm_id, migration_id, to, bed.quick(), nothing)
    assert departure.stopped_ago_ms >= 0
    assert (status(source, vm_id), status(target, vm_id)) == (S.HANDED_OFF, S.INCOMING)
    arrival = await target.take_over(vm_id, migration_id, 2)
    assert arrival.resumed_ago_ms >= 0
    assert (arrival.report.status, arrival.report.generation) == (S.RUNNING, 2)
    assert (arrival.report.machine_type, arrival.report.cpu_model) == (before.machine_type, before.cpu_model)
    assert (await target.verify(vm_id)).status is S.RUNNING
    assert ((await source.look(vm_id)).status, (await target.look(vm_id)).status) == (S.HANDED_OFF, S.RUNNING)
    beat, clock = (await target.examine(vm_id)).checks
    assert (beat.name, beat.outcome, clock.name) == ("heartbeat", Outcome.PASSED, "clock")
    figures = await source.release(vm_id, migration_id)
    assert figures.bytes_transferred
    assert figures.memory_bytes
    assert status(source, vm_id) in GONE
    assert left.statuses.count(S.HANDED_OFF) == 1
    assert S.RUNNING not in left.statuses
    assert came.statuses[-1] is S.RUNNING


async def test_a_paused_machine_moves_and_does_not_run(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source, target = bed.one.agent(), bed.other.agent()
    await source.start(bed.one.launch(vm_id))
    await source.pause(vm_id)
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK, paused=True))
    came = Heard(target)
    await source.send(vm_id, migration_id, to, bed.quick(), nothing)
    for _ in range(2):
        assert (await target.take_over(vm_id, migration_id, 2)).report.status is S.PAUSED
    assert (await target.verify(vm_id)).status is S.PAUSED
    await source.release(vm_id, migration_id)
    assert S.RUNNING not in came.statuses
    assert (await target.resume(vm_id)).status is S.RUNNING


async def test_every_step_may_be_repeated(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source, target = bed.one.agent(), bed.other.agent()
    await sent(bed, vm_id, migration_id)
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    assert (await source.send(vm_id, migration_id, to, bed.quick(), nothing)).stopped_ago_ms >= 0
    for _ in range(2):
        assert (await target.take_over(vm_id, migration_id, 2)).report.status is S.RUNNING
    for _ in range(2):
        assert (await target.verify(vm_id)).status is S.RUNNING
    for _ in range(2):
        await source.release(vm_id, migration_id)
    assert status(target, vm_id) is S.RUNNING


async def test_neither_half_of_a_moving_machine_obeys_ordinary_verbs(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    await sent(bed, vm_id, migration_id)
    for driver in (bed.one.agent(), bed.other.agent()):
        before = status(driver, vm_id)
        with pytest.raises(StateConflict):
            await driver.resume(vm_id)
        assert status(driver, vm_id) is before


async def test_a_target_that_was_not_sent_to_does_not_take_over(bed: Bed) -> None:
    if isinstance(bed, QemuBed):
        pytest.skip("it waits for the stream; tests/system/test_qemu_driver.py has that")
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    target = bed.other.agent()
    await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    with pytest.raises(DriverError):
        await target.take_over(vm_id, migration_id, 2)
    assert status(target, vm_id) is S.INCOMING


async def test_with_no_target_the_source_runs_on(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source, target = bed.one.agent(), bed.other.agent()
    await source.start(bed.one.launch(vm_id))
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    await target.discard(vm_id, migration_id)
    with pytest.raises(MigrationFailed):
        await source.send(vm_id, migration_id, to, bed.quick(), nothing)
    assert status(source, vm_id) is S.RUNNING
    assert (await source.pause(vm_id)).status is S.PAUSED


async def test_a_transfer_under_way_can_be_taken_back_and_tried_again(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source, target = bed.one.agent(), bed.other.agent()
    _, waiting = await sending(bed, vm_id, migration_id)
    for _ in range(2):
        assert (await source.reclaim(vm_id, migration_id)).status is S.RUNNING
    with pytest.raises(MigrationFailed):
        await waiting
    await target.discard(vm_id, migration_id)
    retry = rom_machine.an_id()
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=retry, host=LOOPBACK))
    await source.send(vm_id, retry, to, bed.quick(), nothing)
    assert (await target.take_over(vm_id, retry, 2)).report.status is S.RUNNING


async def test_its_bandwidth_can_be_changed_while_it_leaves_and_at_no_other_time(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    source = bed.one.agent()
    _, waiting = await sending(bed, vm_id, migration_id)
    for bytes_per_s in (1 << 20, 1 << 20, 0):
        await source.set_bandwidth(vm_id, migration_id, bytes_per_s)
    if isinstance(bed, QemuBed):  # the other's stream takes as long as its world says
        async with asyncio.timeout(30.0):
            await waiting  # at the pace of before it would take minutes
    await source.reclaim(vm_id, migration_id)
    with pytest.raises(StateConflict):
        await source.set_bandwidth(vm_id, migration_id, 0)
    await asyncio.gather(waiting, return_exceptions=True)


async def test_one_that_left_whole_can_be_taken_back_before_it_is_taken_over(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    await sent(bed, vm_id, migration_id)
    await bed.other.agent().discard(vm_id, migration_id)
    report = await bed.one.agent().reclaim(vm_id, migration_id)
    assert (report.status, report.migration_id) == (S.RUNNING, "")
    assert (await bed.one.agent().pause(vm_id)).status is S.PAUSED


async def test_discard_ends_what_waits_and_nothing_else(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    target = bed.other.agent()
    await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    await target.discard(vm_id, rom_machine.an_id())
    assert status(target, vm_id) is S.INCOMING
    for _ in range(2):
        await target.discard(vm_id, migration_id)
        assert status(target, vm_id) in GONE


async def test_a_machine_that_took_over_is_never_discarded(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    target = bed.other.agent()
    await sent(bed, vm_id, migration_id)
    await target.take_over(vm_id, migration_id, 2)
    await target.discard(vm_id, migration_id)
    assert status(target, vm_id) is S.RUNNING
    target = await bed.other.restart()
    await target.discard(vm_id, migration_id)
    assert status(target, vm_id) is S.RUNNING


async def test_a_new_agent_joins_the_transfer_of_the_old(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    to, waiting = await sending(bed, vm_id, migration_id)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    source = await bed.one.restart()
    again = asyncio.create_task(source.send(vm_id, migration_id, to, bed.slow(), nothing))
    await asyncio.sleep(0.05)
    assert not again.done()
    assert (await source.reclaim(vm_id, migration_id)).status is S.RUNNING
    with pytest.raises(MigrationFailed):
        await again


async def test_both_agents_may_die_once_both_sides_stand_still(bed: Bed) -> None:
    vm_id, migration_id = rom_machine.an_id(), rom_machine.an_id()
    await sent(bed, vm_id, migration_id)
    source, target = await bed.one.restart(), await bed.other.restart()
    assert (status(source, vm_id), status(target, vm_id)) == (S.HANDED_OFF, S.INCOMING)
    to = await target.accept(bed.other.launch(vm_id), Awaited(migration_id=migration_id, host=LOOPBACK))
    assert (await source.send(vm_id, migration_id, to, bed.quick(), nothing)).stopped_ago_ms > 0
    assert (await target.take_over(vm_id, migration_id, 2)).report.generation == 2
    assert (await source.release(vm_id, migration_id)).bytes_transferred
    assert status(target, vm_id) is S.RUNNING


async def test_releasing_what_is_not_there_measures_nothing(bed: Bed) -> None:
    figures = await bed.one.agent().release(rom_machine.an_id(), rom_machine.an_id())
    assert figures.bytes_transferred is None
