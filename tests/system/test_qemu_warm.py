"""The QEMU driver moving machines that stand still, and slowing or stopping one that would not end; the probe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import pytest

from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import postcopy_probe
from novacron.agent.drivers.qemu.follow import halt
from novacron.agent.drivers.qemu.record import Role, Transfer
from novacron.errors import DriverError, MigrationFailed
from novacron.model.machine import MachineStatus
from novacron.model.migration import Goals, Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import setting_is_ours
from tests.system.rom_machine import Hosts, kill, needs_qemu, until
from tests.system.rom_move import LOOPBACK, Move, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
S = MachineStatus
WARM = Tactics(stands_still=True)
SLOW = Goals(bandwidth_bytes_per_s=4 << 20)  # seconds, for a guest that stands still


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


async def sending(move: Move, tactics: Tactics = WARM, goals: Goals = SLOW) -> asyncio.Task[object]:
    """On its way, the guest standing still."""
    task: asyncio.Task[object] = asyncio.create_task(move.send(await move.prepare(), tactics, goals))
    await until(lambda: move.at_source() is S.PAUSED and move.state(move.source) == "active", "the stream")
    return task


async def runs_on(move: Move) -> None:
    """Taken back, it runs at once: QEMU does not let it go on, and is not waited for."""
    began_s = time.monotonic()
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    assert time.monotonic() - began_s < 4.0
    await move.one.ticking(move.vm_id, 30)
    move.check()


# -- warm ----------------------------------------------------------------------------------------------------------


async def test_it_stands_still_goes_there_and_comes_back(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await sending(move)
    assert await move.one.silent(move.vm_id)
    monitor = move.source._fleet.machines[move.vm_id].door()
    assert await monitor.execute("query-status", deadline_s=1.0)  # it answers while memory is on its way
    departure = await task
    assert departure.whole  # type: ignore[attr-defined]
    assert departure.stopped_ago_ms > 500  # type: ignore[attr-defined]
    await move.take_over()
    figures = await move.finish()
    assert figures.iterations is not None
    assert figures.iterations <= 3
    before = move.one.console(move.vm_id) + move.other.console(move.vm_id)
    back, there = Move(hosts), move.other
    back.one, back.source, back.vm_id = there, move.target, move.vm_id
    to = await back.target.accept(back.launch(back.other), Awaited(migration_id=back.migration_id, host=LOOPBACK))
    await back.send(to, WARM, Goals())
    await back.target.take_over(back.vm_id, back.migration_id, 3)
    await back.other.ticking(back.vm_id, 50)
    lines = before + there.console(move.vm_id)[len(move.other.console(move.vm_id)) :] + back.other.console(back.vm_id)
    assert lines
    ticks = [int(bad, 16) for _, bad in rom_machine.TICK.findall(lines)]
    assert set(ticks) == {0}


@pytest.mark.parametrize("moment", ["under way", "whole", "its target dead"])
async def test_it_can_be_taken_back_at_this_moment(hosts: Hosts, moment: str) -> None:
    move = Move(hosts)
    task = await sending(move, goals=Goals() if moment == "whole" else SLOW) if moment != "whole" else None
    if moment == "whole":
        await move.send(await move.prepare(), WARM, Goals())
    if moment == "its target dead":
        report = move.target.report(move.vm_id)
        assert report is not None
        kill(report.pid)
        assert task is not None
        with pytest.raises(MigrationFailed):
            await task
        assert move.at_source() is S.RUNNING  # nobody has to ask for it
    await runs_on(move)
    if task is not None:
        with contextlib.suppress(MigrationFailed, DriverError):
            await task


async def test_one_that_was_paused_stays_so(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    await move.source.pause(move.vm_id)
    assert (await move.send(to, WARM, Goals())).whole
    await move.target.discard(move.vm_id, move.migration_id)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.PAUSED
    assert await move.one.silent(move.vm_id)


async def test_an_agent_that_starts_anew_goes_on_with_it(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    task = asyncio.create_task(move.send(to, WARM, SLOW))
    await until(lambda: move.at_source() is S.PAUSED and move.state(move.source) == "active", "the stream")
    await move.restart_source()
    await asyncio.gather(task, return_exceptions=True)
    assert (await move.send(to, WARM, SLOW)).whole
    await move.take_over()
    await move.finish()


@pytest.mark.parametrize("asked", ["to send", "to take it back"])
async def test_a_pause_that_a_dead_agent_left_is_no_wish_of_anybodys(hosts: Hosts, asked: str) -> None:
    move = Move(hosts)
    to = await move.prepare()
    machine = move.source._fleet.machines[move.vm_id]
    machine.record.transfer = Transfer(migration_id=move.migration_id, role=Role.SOURCE, tactics=WARM)
    assert await halt(machine, machine.record.transfer)
    assert (await move.restart_source()).status is S.PAUSED
    if asked == "to send":
        await move.send(to, WARM, Goals())
        await move.target.discard(move.vm_id, move.migration_id)
    await runs_on(move)


# -- one that would not end ----------------------------------------------------------------------------------------


async def test_a_guest_that_may_be_paused_is_when_nothing_else_helps(hosts: Hosts) -> None:
    move = Move(hosts)
    departure = await move.send(await move.prepare(), Tactics(may_pause=True), Goals(bandwidth_bytes_per_s=40 << 20))
    assert departure.whole
    await move.take_over()
    figures = await move.finish()
    assert figures.iterations is not None
    assert figures.iterations > 4


async def test_a_guest_is_slowed_down_as_far_as_it_may_be_and_not_for_ever(hosts: Hosts) -> None:
    move = Move(hosts)
    throttled = Tactics(max_throttle_percent=99)
    task = asyncio.create_task(move.send(await move.prepare(), throttled, Goals(bandwidth_bytes_per_s=40 << 20)))
    await until(lambda: move.state(move.source) == "active", "the stream")
    monitor = move.source._fleet.machines[move.vm_id].door()
    during = await monitor.execute("query-migrate-parameters")
    assert (during["cpu-throttle-initial"], during["max-cpu-throttle"]) == (20, 90)
    slowed = 0
    while not slowed:
        slowed = (await monitor.execute("query-migrate")).get("cpu-throttle-percentage", 0)
        await asyncio.sleep(0.05)
    assert 20 <= slowed <= 90
    await runs_on(move)
    with pytest.raises((MigrationFailed, DriverError)):
        await task
    after = await monitor.execute("query-migrate-parameters")
    assert (after["cpu-throttle-initial"], after["max-cpu-throttle"], after["max-postcopy-bandwidth"]) == (20, 99, 0)
    assert [cap for cap in await monitor.execute("query-migrate-capabilities") if cap["state"]] == []


# -- whether machines can arrive in post-copy ------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.skipif(not os.access(postcopy_probe.SETTING, os.W_OK), reason="only root can change what the kernel lets")
async def test_the_feature_follows_the_kernels_setting(hosts: Hosts) -> None:
    move = Move(hosts, pages=0)
    with setting_is_ours():
        for allowed in ("1", "0", "1", "0"):
            postcopy_probe.SETTING.write_text(allowed)
            features = (await move.target.probe()).features
            assert (postcopy_probe.FEATURE in features) is (allowed == "1")
        to = await move.prepare()  # it takes an ordinary stream, and refuses the other
        with pytest.raises(MigrationFailed):
            await move.send(to, Tactics(strategy=Strategy.HYBRID), Goals())
        assert move.at_source() is S.RUNNING
    move.migration_id = rom_machine.an_id()
    await move.target.discard(move.vm_id, move.migration_id)


async def test_a_target_that_could_arrive_so_takes_an_ordinary_stream(hosts: Hosts) -> None:
    move = Move(hosts, pages=20)
    to = await move.prepare()
    await move.source.send(move.vm_id, move.migration_id, to, Goals(), nothing)
    await move.take_over()
    await move.finish()
