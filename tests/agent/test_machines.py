"""Machines of one node: the verbs, the floor, what is undone when something fails, what an agent's restart finds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.ledger import FILE, Role
from novacron.errors import (
    Busy,
    InvalidInput,
    MachineDied,
    NotFound,
    NovaCronError,
    StaleGeneration,
    StateConflict,
    StoreCorrupt,
)
from novacron.model.machine import CloudInit, Disk, Forward, MachineReport, MachineSpec, MachineStatus, Nic, StopMode
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_cluster import SimCluster
from novacron.wire import agent as wire
from tests.agent.waiting import until

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
DISK = "01890000-0000-7000-8000-0000000000d1"
NIC = Nic(id="01890000-0000-7000-8000-0000000000e1", mac="52:54:00:00:00:01", forwards=(Forward(guest_port=22),))
SPEC = MachineSpec(
    vm_id=VM, generation=3, vcpus=1, memory_mib=64, disks=(Disk(volume_id=DISK, size_bytes=1 << 20),), nics=(NIC,)
)


class Node:
    """One simulated node and its verbs, called over the (simulated) line."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.agent: SimAgent = cluster["a"]

    async def call(self, args: msgspec.Struct, answer: Any = MachineReport) -> Any:
        return await self.cluster.call(self.agent.node_id, args, answer, deadline_s=5)

    async def start(self, spec: MachineSpec = SPEC) -> MachineReport:
        report: MachineReport = await self.call(wire.Start(spec=spec))
        return report

    async def stop(self, generation: int = 3, mode: StopMode = StopMode.GRACEFUL) -> MachineReport:
        report: MachineReport = await self.call(wire.Stop(vm_id=VM, generation=generation, mode=mode, deadline_s=60))
        return report

    async def remove(self, generation: int = 3) -> None:
        await self.call(wire.Remove(vm_id=VM, generation=generation, volumes=(DISK,)), type(None))

    async def restart(self) -> None:
        await self.cluster.kill("a")
        await self.cluster.boot("a")

    def report(self) -> MachineReport:
        found = self.agent.machines.report(VM)
        assert found is not None
        return found

    @property
    def status(self) -> MachineStatus:
        return self.report().status


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    cluster = SimCluster(tmp_path, HandClock(), ["a"])
    await cluster.start()
    yield Node(cluster)
    await cluster.stop()
    assert cluster.world.violations == []


async def test_a_life(node: Node) -> None:
    report = await node.start()
    assert (report.status, report.generation) == (MachineStatus.RUNNING, 3)
    assert report.endpoints[0].guest_port == 22
    assert node.cluster.pool.volumes() == [DISK]
    assert (await node.call(wire.Pause(vm_id=VM, generation=3))).status is MachineStatus.PAUSED
    assert (await node.start()).status is MachineStatus.PAUSED  # it is booted
    assert (await node.call(wire.Resume(vm_id=VM, generation=3))).status is MachineStatus.RUNNING
    with pytest.raises(StateConflict):
        await node.remove()
    assert (await node.stop()).status is MachineStatus.STOPPED
    assert node.agent.plugged == set()
    assert (await node.start()).status is MachineStatus.RUNNING
    await node.stop(mode=StopMode.FORCED)
    await node.remove()
    assert node.agent.machines.reports() == ()
    assert node.cluster.pool.volumes() == []
    assert not (node.agent.root / "run" / VM).exists()


async def test_every_verb_again_finds_its_work_done(node: Node) -> None:
    for _ in range(2):
        report = await node.start()
    assert len(node.agent.host.machines) == 1
    assert report.pid == 1000
    for verb in (wire.Pause, wire.Resume):
        for _ in range(2):
            report = await node.call(verb(vm_id=VM, generation=3))
    assert report.status is MachineStatus.RUNNING
    for _ in range(2):
        assert (await node.stop()).status is MachineStatus.STOPPED
    for _ in range(2):
        await node.remove()


async def test_an_older_ownership_is_refused_by_every_verb_also_after_a_restart(node: Node) -> None:
    await node.start()
    old: list[msgspec.Struct] = [
        wire.Start(spec=msgspec.structs.replace(SPEC, generation=2)),
        *(verb(vm_id=VM, generation=2) for verb in (wire.Stop, wire.Pause, wire.Resume, wire.Remove, wire.Console)),
    ]
    for _ in range(2):
        for args in old:
            with pytest.raises(StaleGeneration):
                await node.call(args)
        await node.restart()
    await node.stop(generation=5)
    await node.restart()
    with pytest.raises(StaleGeneration):
        await node.start()
    assert node.status is MachineStatus.STOPPED


async def test_the_floor_holds_for_machines_this_node_never_ran(node: Node) -> None:
    assert (await node.stop(generation=4)).status is MachineStatus.ABSENT
    await node.restart()
    with pytest.raises(StaleGeneration):
        await node.start()  # a start that was long on its way
    assert node.agent.host.machines == {}


async def test_a_newer_ownership_is_what_is_reported(node: Node) -> None:
    await node.start()
    report = await node.call(wire.Pause(vm_id=VM, generation=4))
    assert report.generation == 4
    await node.restart()
    assert node.report().generation == 4


async def test_a_failed_start_takes_everything_back_but_its_volumes(node: Node) -> None:
    for after in (False, True):
        node.agent.host.fail("start", MachineDied("qemu: no"), after=after)
        with pytest.raises(MachineDied, match="qemu: no"):
            await node.start()
        assert node.agent.plugged == set()
        assert node.agent.host.machines == {}
        assert node.cluster.pool.volumes() == [DISK]
        assert (node.status, node.report().reason) == (MachineStatus.ABSENT, "qemu: no")
        await node.restart()
        assert (node.status, node.report().reason) == (MachineStatus.ABSENT, "qemu: no")
    assert (await node.start()).status is MachineStatus.RUNNING


async def test_a_taken_port_is_chosen_anew_and_other_deaths_are_not(node: Node) -> None:
    taken = MachineDied("the process ended: Could not set up host forwarding rule 'tcp:127.0.0.1:40000-:22'")
    node.agent.host.fail("start", taken, times=2)
    assert (await node.start()).status is MachineStatus.RUNNING
    await node.stop()
    node.agent.host.fail("start", taken, times=3)
    with pytest.raises(MachineDied):
        await node.start()
    node.agent.host.fail("start", MachineDied("out of memory"))
    with pytest.raises(MachineDied, match="out of memory"):
        await node.start()
    assert (await node.start()).status is MachineStatus.RUNNING


async def test_a_cancelled_start_leaves_nothing(node: Node) -> None:
    gate = asyncio.Event()
    real = node.cluster.pool.ensure_volume

    async def slowly(*args: Any, **options: Any) -> Any:
        await gate.wait()
        return await real(*args, **options)

    node.cluster.pool.ensure_volume = slowly  # type: ignore[method-assign]
    starting = asyncio.create_task(node.start())
    await until((node.agent.root / "run" / VM).exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    gate.set()
    await until(lambda: node.report().reason == "its start was cancelled")
    assert node.agent.host.machines == {}
    assert (await node.start()).status is MachineStatus.RUNNING


async def test_survivors_are_adopted_untouched(node: Node) -> None:
    before = await node.start()
    await node.restart()
    assert node.report() == before
    assert (await node.start()) == before


async def test_ends_nobody_watched_are_told_with_their_reason(node: Node) -> None:
    await node.start()
    await node.cluster.kill("a")
    node.agent.host.crash(VM)
    await node.cluster.boot("a")
    assert (node.status, node.report().reason) == (
        MachineStatus.CRASHED,
        "its process ended while the agent was not running",
    )
    await node.start()
    await node.cluster.kill("a")
    node.agent.host.reboot()
    await node.cluster.boot("a")
    assert (node.status, node.report().reason) == (MachineStatus.CRASHED, "its node was restarted")


async def test_ends_that_were_watched_are_known_after_a_restart(node: Node) -> None:
    seen: list[MachineReport] = []
    node.cluster.on_report(lambda _, report: seen.extend(report.machines))
    await node.start()
    node.agent.host.power_off(VM)
    await until(lambda: bool(seen) and seen[-1].reason == "guest_shutdown")
    file = node.agent.root / "state" / "machines" / VM / FILE
    await until(lambda: b"guest_shutdown" in file.read_bytes())
    await node.restart()
    assert (node.status, node.report().reason) == (MachineStatus.STOPPED, "guest_shutdown")


async def test_a_process_this_node_does_not_hold_is_reported_and_never_doubled(node: Node) -> None:
    await node.start()
    await node.cluster.kill("a")
    (node.agent.root / "state" / "machines" / VM / FILE).unlink()
    await node.cluster.boot("a")
    assert node.status is MachineStatus.RUNNING
    await node.start()
    assert node.report().pid == 1000


async def test_a_file_that_cannot_be_read_bars_its_machine_alone(node: Node) -> None:
    await node.start()
    await node.stop()
    await node.cluster.kill("a")
    (node.agent.root / "state" / "machines" / VM / FILE).write_bytes(b'{"vm_id":')
    await node.cluster.boot("a")
    with pytest.raises(StoreCorrupt, match="mend or remove"):
        await node.start()
    other = "01890000-0000-7000-8000-000000000002"
    assert (await node.start(MachineSpec(vm_id=other, generation=1, vcpus=1, memory_mib=64))).vm_id == other


async def test_a_full_disk_refuses_the_verb_and_keeps_the_old_file(node: Node) -> None:
    await node.start()
    directory = node.agent.root / "state" / "machines" / VM
    kept = (directory / FILE).read_bytes()
    (directory / f".{FILE}.new").mkdir()  # nothing can be written here now
    with pytest.raises(NovaCronError, match="cannot write"):
        await node.stop(generation=4)
    assert (directory / FILE).read_bytes() == kept
    assert node.status is MachineStatus.RUNNING
    (directory / f".{FILE}.new").rmdir()
    await node.stop(generation=4)
    assert b'"generation":4' in (directory / FILE).read_bytes()


@pytest.mark.parametrize("vm_id", ["", "../../etc/x", "a" * 36, VM[:-1] + "A", VM + "\n", "x\0"])
async def test_only_ids_become_paths(node: Node, vm_id: str) -> None:
    with pytest.raises(InvalidInput):
        await node.start(msgspec.structs.replace(SPEC, vm_id=vm_id))
    with pytest.raises(InvalidInput):
        await node.call(wire.Remove(vm_id=vm_id, generation=1))
    assert [path.name for path in (node.agent.root / "run").iterdir()] == []


async def test_a_forced_stop_overtakes_a_graceful_one(node: Node) -> None:
    await node.start()
    node.agent.host.machines[VM].ignores_shutdown = True
    waits = asyncio.Event()
    real = node.agent.driver.stop

    async def stop(*args: Any) -> MachineReport:
        waits.set()
        return await real(*args)

    node.agent.driver.stop = stop  # type: ignore[method-assign]
    graceful = asyncio.create_task(node.stop())
    await waits.wait()
    assert (await node.stop(mode=StopMode.FORCED)).status is MachineStatus.STOPPED
    graceful.cancel()


async def test_what_is_not_here_is_said_so(node: Node) -> None:
    for verb in (wire.Pause, wire.Resume, wire.Console):
        with pytest.raises(NotFound):
            await node.call(verb(vm_id=VM, generation=1))
    await node.start()
    await node.stop()
    with pytest.raises(StateConflict):
        await node.call(wire.Pause(vm_id=VM, generation=3))


async def test_a_machine_on_its_way_is_busy_not_gone(node: Node) -> None:
    await node.start()
    holding = node.agent.ledger.get(VM)
    assert holding is not None
    await node.agent.ledger.put(msgspec.structs.replace(holding, role=Role.LEAVING, migration_id=DISK))
    with pytest.raises(Busy, match=DISK):
        await node.call(wire.Pause(vm_id=VM, generation=3))


async def test_a_seed_lies_beside_the_machine_for_its_user_alone(node: Node) -> None:
    cloud_init = CloudInit(user_data="#cloud-config\n")
    await node.start(msgspec.structs.replace(SPEC, cloud_init=cloud_init))
    run_dir = node.agent.root / "run" / VM
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert (run_dir / "seed.iso").stat().st_mode & 0o777 == 0o400
    await node.stop()
    await node.start(msgspec.structs.replace(SPEC, cloud_init=cloud_init))  # made anew each time


class TestConsole:
    """The serial log, which lies where the machine's own, possibly hostile, user may write."""

    @pytest.fixture
    async def log(self, node: Node) -> Path:
        await node.start()
        return node.agent.root / "run" / VM / "console.log"

    async def tail(self, node: Node, max_bytes: int = 65536) -> wire.ConsoleText:
        text: wire.ConsoleText = await node.call(
            wire.Console(vm_id=VM, generation=3, max_bytes=max_bytes), wire.ConsoleText
        )
        return text

    async def test_its_end_is_read_and_bounded(self, node: Node, log: Path) -> None:
        assert await self.tail(node) == wire.ConsoleText(text="", truncated=False)
        log.write_bytes(b"login: \xff\n")
        assert await self.tail(node) == wire.ConsoleText(text="login: \xff\n", truncated=False)
        assert await self.tail(node, 2) == wire.ConsoleText(text="\xff\n", truncated=True)
        assert (await self.tail(node, 0)).text == ""
        assert (await self.tail(node, -5)).text == ""
        log.write_bytes(b"x" * (3 << 20))
        assert len((await self.tail(node, 1 << 40)).text) == 1 << 20

    async def test_a_hole_left_by_trimming_is_not_text(self, node: Node, log: Path) -> None:
        with log.open("wb") as file:
            file.seek(100_000)
            file.write(b"after")
        assert await self.tail(node, 1000) == wire.ConsoleText(text="after", truncated=True)

    async def test_nothing_put_in_its_place_is_followed(self, node: Node, log: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("root only")
        for trap in (log.symlink_to, log.hardlink_to):
            trap(secret)
            with pytest.raises(NovaCronError) as refused:
                await self.tail(node)
            assert "root only" not in str(refused.value)
            log.unlink()
        os.mkfifo(log)
        with pytest.raises(NovaCronError):
            await self.tail(node)
