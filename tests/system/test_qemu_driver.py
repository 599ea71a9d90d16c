"""The QEMU driver under bad luck: dead agents, dead and frozen QEMUs, wrong keys, hostile directories."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Layer, NicPlug
from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu import QemuDriver
from novacron.agent.drivers.qemu.firmware import find_uefi
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, MonitorFailed, NovaCronError
from novacron.model.machine import Firmware, MachineKind, MachineReport, MachineStatus, StopMode
from novacron.model.migration import Goals, Progress
from tests.system import rom_machine
from tests.system.rom_machine import NOBODY, Host, Hosts, an_id, kill, needs_qemu, until, with_spec

OPEN_TO_OTHERS = all(folder.stat().st_mode & 0o001 for folder in Path(__file__).resolve().parents)

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
S = MachineStatus
LOOPBACK = "127.0.0.1"
SLOW = Goals(bandwidth_bytes_per_s=100_000)


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


def nothing(_: Progress) -> None:
    """A listener who does not care."""


def status(driver: QemuDriver, vm_id: str) -> MachineStatus:
    report = driver.report(vm_id)
    return report.status if report else S.ABSENT


def pid(driver: QemuDriver, vm_id: str) -> int:
    report = driver.report(vm_id)
    assert report is not None
    return report.pid


class Move:
    """A machine that ticks on `one`, and a target for it on `other`."""

    def __init__(self, hosts: Hosts, stall_s: float = 30.0) -> None:
        self.pages, self.wss = 20, 4096
        self.one, self.other = hosts.new(), hosts.new()
        self.source, self.target = self.one.driver(stall_s), self.other.driver()
        self.vm_id, self.migration_id = an_id(), an_id()

    def launch(self, host: Host) -> Launch:
        return host.launch(self.vm_id, pages=self.pages, wss=self.wss)

    async def prepare(self, pages: int = 20) -> Reception:
        self.pages = pages
        await self.source.start(self.launch(self.one))
        await self.one.ticking(self.vm_id)
        return await self.target.accept(self.launch(self.other), Awaited(migration_id=self.migration_id, host=LOOPBACK))

    def send(self, to: Reception, goals: Goals, progress: Callable[[Progress], None] = nothing) -> asyncio.Task[object]:
        return asyncio.create_task(self.source.send(self.vm_id, self.migration_id, to, goals, progress))

    async def sending(self, goals: Goals = SLOW, pages: int = 20) -> asyncio.Task[object]:
        """On its way, slowly, past the handshake."""
        moved: list[int] = []
        task = self.send(await self.prepare(pages), goals, lambda seen: moved.append(seen.transferred_bytes))
        await until(lambda: task.done() or any(moved), "the first progress")
        assert not task.done()
        return task

    async def runs_on(self) -> None:
        """The source runs as before, and can be sent again to its end."""
        assert status(self.source, self.vm_id) is S.RUNNING
        await self.one.ticking(self.vm_id)
        again = an_id()
        await self.target.discard(self.vm_id, self.migration_id)
        if self.target.report(self.vm_id) is not None:
            await self.target.forget(self.vm_id)
        to = await self.target.accept(self.launch(self.other), Awaited(migration_id=again, host=LOOPBACK))
        await self.source.send(self.vm_id, again, to, Goals(), nothing)
        await self.target.take_over(self.vm_id, again, 2)
        await self.other.ticking(self.vm_id)
        for host in (self.one, self.other):
            assert [bad for _, bad in host.ticks(self.vm_id) if bad] == []


# -- the agent dies --------------------------------------------------------------------------------------------

AGENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.qemu import QemuDriver
from novacron.clock import SystemClock

async def main():
    driver = QemuDriver("qemu-system-x86_64", Path(sys.argv[1]), SystemClock(), accelerator="tcg")
    launch = msgspec.json.decode(sys.stdin.read(), type=Launch, dec_hook=lambda _, value: Path(value))
    print((await driver.start(launch)).pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_machine_survives_the_kill_of_its_agent_and_is_found(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    launch = msgspec.json.encode(host.launch(vm_id), enc_hook=str)
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(rom_machine.CACHE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(launch)
        agent.stdin.close()
        started = int(await asyncio.to_thread(agent.stdout.readline))
        await host.ticking(vm_id)
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None
        agent.stdout.close()
    await host.ticking(vm_id)
    driver = host.driver()
    (report,) = await driver.adopt(host.run_dirs())
    assert (report.pid, report.status, report.accelerator) == (started, S.RUNNING, "tcg")
    await driver.pause(vm_id)
    assert await host.silent(vm_id)
    seqs = [seq for seq, _ in host.ticks(vm_id)]
    assert seqs == list(range(1, len(seqs) + 1))
    await driver.stop(vm_id, StopMode.FORCED, 0)
    assert host.pids() == []


async def test_one_whose_pid_was_not_noted_yet_is_found_all_the_same(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    first = host.driver()
    started = await first.start(host.launch(vm_id))
    await first.close()
    noted = host.root / vm_id / "machine.json"
    record = msgspec.json.decode(noted.read_bytes())
    del record["identity"]
    noted.write_bytes(msgspec.json.encode(record))
    (report,) = await host.driver().adopt(host.run_dirs())
    assert (report.pid, report.status) == (started.pid, S.RUNNING)


async def test_a_pid_that_now_belongs_to_another_process_is_left_alone(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    first = host.driver()
    await first.start(host.launch(vm_id))
    kill(pid(first, vm_id))
    await until(lambda: status(first, vm_id) is S.CRASHED, "the crash")
    await first.close()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        noted = host.root / vm_id / "machine.json"
        record = msgspec.json.decode(noted.read_bytes())
        record["identity"]["pid"] = bystander.pid
        noted.write_bytes(msgspec.json.encode(record))
        driver = host.driver()
        (report,) = await driver.adopt(host.run_dirs())
        assert (report.status, report.pid) == (S.CRASHED, 0)
        await driver.stop(vm_id, StopMode.FORCED, 0)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_an_agent_that_dies_in_a_transfer_leaves_it_to_the_next(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending(Goals(bandwidth_bytes_per_s=100_000), pages=0)
    await move.source.close()
    await asyncio.gather(task, return_exceptions=True)
    move.source = move.one.driver()
    await move.source.adopt(move.one.run_dirs())  # nobody asks for the transfer: it goes on by itself
    await until(lambda: status(move.source, move.vm_id) is S.HANDED_OFF, "the end of the transfer")
    await move.target.close()
    move.target = move.other.driver()
    await move.target.adopt(move.other.run_dirs())
    assert (await move.target.take_over(move.vm_id, move.migration_id, 2)).report.status is S.RUNNING
    await move.other.ticking(move.vm_id)


# -- QEMUs die and freeze ----------------------------------------------------------------------------------------


async def test_the_target_dies_in_a_transfer(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending()
    kill(pid(move.target, move.vm_id))
    with pytest.raises(MigrationFailed) as failed:
        await task
    assert failed.value.reasons  # QEMU's own words
    await move.runs_on()


async def test_a_target_that_died_a_moment_ago_was_certainly_never_told_to_continue(hosts: Hosts) -> None:
    """Nobody has turned to look at it yet: the kernel is asked."""
    move = Move(hosts)
    to = await move.prepare()
    await move.send(to, Goals())
    dying = pid(move.target, move.vm_id)
    watching = os.pidfd_open(dying)
    os.kill(dying, signal.SIGKILL)
    select.select([watching], [], [])  # all its threads, and no turn of the loop meanwhile
    os.close(watching)
    with pytest.raises(DriverError):  # that it died, or that it cannot be asked whether it has loaded
        await move.target.take_over(move.vm_id, move.migration_id, 2)
    await until(lambda: status(move.target, move.vm_id) is S.CRASHED, "the end of its process")
    report = move.target.report(move.vm_id)
    assert report
    assert report.generation < 2
    await move.target.discard(move.vm_id, move.migration_id)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id)


async def test_a_failed_transfer_leaves_no_limit_and_no_key_behind(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending()
    monitor = move.source._fleet.machines[move.vm_id].monitor
    assert monitor is not None
    during = await monitor.execute("query-migrate-parameters")
    assert (during["max-bandwidth"], during["tls-creds"]) == (SLOW.bandwidth_bytes_per_s, "migration-key")
    await move.source.reclaim(move.vm_id, move.migration_id)
    await asyncio.gather(task, return_exceptions=True)
    after = await monitor.execute("query-migrate-parameters")
    assert (after["max-bandwidth"], after["downtime-limit"], after["tls-creds"]) == (128 << 20, 300, "")
    assert [cap for cap in await monitor.execute("query-migrate-capabilities") if cap["state"]] == []
    objects = await monitor.execute("qom-list", {"path": "/objects"})
    assert "migration-key" not in [entry["name"] for entry in objects]
    assert not (move.one.root / move.vm_id / "key").exists()


async def test_the_source_dies_in_a_transfer(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending()
    kill(pid(move.source, move.vm_id))
    with pytest.raises(MigrationFailed):
        await task
    assert status(move.source, move.vm_id) is S.CRASHED
    await until(lambda: status(move.target, move.vm_id) is S.CRASHED, "the target's end")
    await move.target.discard(move.vm_id, move.migration_id)
    assert move.target.report(move.vm_id) is None
    assert move.other.pids() == []


async def test_a_transfer_to_a_frozen_target_can_be_taken_back(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending()
    kill(pid(move.target, move.vm_id), signal.SIGSTOP)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    with pytest.raises(MigrationFailed):
        await task
    await move.runs_on()


@pytest.mark.parametrize("pages", [0, 100], ids=["waiting for its answer", "sending, its main loop held"])
async def test_a_target_that_freezes_while_the_guest_stands_still_is_let_go_of(hosts: Hosts, pages: int) -> None:
    move = Move(hosts)
    task = await move.sending(pages=pages)
    kill(pid(move.target, move.vm_id), signal.SIGSTOP)
    monitor = move.source._fleet.machines[move.vm_id].monitor
    assert monitor is not None
    hurry: dict[str, object] = {"downtime-limit": 2_000_000}  # the rest now, which no buffer can hold
    await monitor.execute("migrate-set-parameters", hurry)
    await until(lambda: status(move.source, move.vm_id) is S.PAUSED, "the switch-over")
    with contextlib.suppress(DeadlineExceeded):
        while pages:  # until its main loop is held
            await monitor.execute("query-status", deadline_s=0.3)
    assert await move.one.silent(move.vm_id)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    with pytest.raises(MigrationFailed):
        await task
    await move.runs_on()


async def test_a_transfer_in_which_nothing_moves_is_given_up(hosts: Hosts) -> None:
    move = Move(hosts, stall_s=0.6)
    task = await move.sending(Goals(bandwidth_bytes_per_s=2_000_000))
    kill(pid(move.target, move.vm_id), signal.SIGSTOP)
    with pytest.raises(MigrationFailed, match="nothing moved"):
        await task
    await move.runs_on()


async def test_a_transfer_that_takes_too_long_is_given_up(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    with pytest.raises(MigrationFailed, match="time it was given"):
        await move.send(to, Goals(bandwidth_bytes_per_s=50_000, finish_within_s=0.4))
    await move.runs_on()


# -- who may send ------------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_refused_and_the_right_one_still_works(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    wrong = msgspec.structs.replace(to, key_hex="0" * 64)
    with pytest.raises(MigrationFailed):
        await move.send(wrong, Goals())
    assert status(move.source, move.vm_id) is S.RUNNING
    assert status(move.target, move.vm_id) is S.INCOMING
    await move.send(to, Goals())
    assert (await move.target.take_over(move.vm_id, move.migration_id, 2)).report.status is S.RUNNING


async def test_a_stranger_without_a_key_cannot_feed_a_target(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    reader, writer = await asyncio.open_connection(to.host, to.port)
    writer.write(b"QEVM\x00\x00\x00\x03" + bytes(4096))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) in (b"", b"\x15\x03\x03\x00\x02\x02\x46") or True
    writer.close()
    assert status(move.target, move.vm_id) is S.INCOMING
    await move.send(to, Goals())
    assert (await move.target.take_over(move.vm_id, move.migration_id, 2)).report.status is S.RUNNING


async def test_the_key_is_in_no_argv_and_no_file_once_it_is_over(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    for driver in (move.source, move.target):
        argv = Path(f"/proc/{pid(driver, move.vm_id)}/cmdline").read_bytes()
        assert to.key_hex.encode() not in argv
    await move.send(to, Goals())
    await move.target.take_over(move.vm_id, move.migration_id, 2)
    await move.target.verify(move.vm_id)
    await move.source.release(move.vm_id, move.migration_id)
    left = [path for host in (move.one, move.other) for path in host.root.rglob("*") if path.is_file()]
    assert left
    assert [path for path in left if to.key_hex.encode() in path.read_bytes()] == []


# -- cancelled at every moment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["at once", "under way", "standing still", "handed off"])
async def test_reclaimed_at_this_moment_it_runs_as_before(hosts: Hosts, moment: str) -> None:
    move = Move(hosts)
    to = await move.prepare()
    seen = asyncio.Event()
    wanted = {"standing still": S.PAUSED, "handed off": S.HANDED_OFF}.get(moment)

    def listen(report: MachineReport) -> None:
        if report.status is wanted:
            seen.set()

    move.source.subscribe(listen)
    goals = SLOW if moment == "under way" else Goals()
    task = move.send(to, goals, lambda _: seen.set() if moment == "under way" else None)
    if moment != "at once":
        await asyncio.wait_for(seen.wait(), 20)
    else:
        await asyncio.sleep(0)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    with contextlib.suppress(MigrationFailed, DriverError):
        await task
    await move.runs_on()


async def test_a_paused_machine_is_paused_again_after_reclaim(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    await move.source.pause(move.vm_id)
    await move.send(to, Goals())
    await move.target.discard(move.vm_id, move.migration_id)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.PAUSED
    assert await move.one.silent(move.vm_id)
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id)


async def test_a_forced_stop_does_not_wait_for_a_transfer(hosts: Hosts) -> None:
    move = Move(hosts)
    task = await move.sending()
    assert (await move.source.stop(move.vm_id, StopMode.FORCED, 0)).status is S.STOPPED
    with pytest.raises(MigrationFailed):
        await task
    assert move.one.pids() == []


async def test_a_forced_stop_cuts_a_graceful_one_short(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    driver = host.driver()
    await driver.start(host.launch(vm_id))
    graceful = asyncio.create_task(driver.stop(vm_id, StopMode.GRACEFUL, 60))
    await asyncio.sleep(0.05)
    assert (await driver.stop(vm_id, StopMode.FORCED, 0)).status is S.STOPPED
    with pytest.raises(DriverError, match="gave way"):
        await graceful


async def test_a_start_or_accept_that_is_cancelled_leaves_nothing(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    await driver.probe()
    for delay_s in (0.0, 0.005, 0.02):
        launch, migration_id = host.launch(an_id()), an_id()
        for work in (driver.start(launch), driver.accept(launch, Awaited(migration_id=migration_id, host=LOOPBACK))):
            task = asyncio.create_task(work)
            await asyncio.sleep(delay_s)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                await driver.stop(launch.spec.vm_id, StopMode.FORCED, 0)
                await driver.forget(launch.spec.vm_id)
            assert driver.reports() == []
            assert host.pids() == []
            assert {path.name for path in launch.run_dir.iterdir()} <= {"console.log"}


async def test_discard_does_not_wait_for_accept(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    launch, migration_id = host.launch(an_id()), an_id()
    accepting = asyncio.create_task(driver.accept(launch, Awaited(migration_id=migration_id, host=LOOPBACK)))
    await asyncio.sleep(0.01)
    await driver.discard(launch.spec.vm_id, migration_id)
    with pytest.raises(DriverError, match="gave way"):
        await accepting
    assert host.pids() == []


# -- there and back ------------------------------------------------------------------------------------------------


async def test_moved_five_times_it_lost_no_tick_and_no_page(hosts: Hosts) -> None:
    vm_id = an_id()
    here = hosts.new()
    driver = here.driver()
    stays: list[Host] = [here]
    await driver.start(here.launch(vm_id, pages=40, wss=4096))
    await here.ticking(vm_id, 10)
    for generation in range(2, 7):
        there, migration_id = hosts.new(), an_id()
        target = there.driver()
        to = await target.accept(
            there.launch(vm_id, pages=40, wss=4096), Awaited(migration_id=migration_id, host=LOOPBACK)
        )
        await driver.send(vm_id, migration_id, to, Goals(), nothing)
        assert await here.silent(vm_id)
        assert there.console(vm_id) == b""
        arrival = await target.take_over(vm_id, migration_id, generation)
        assert arrival.report.generation == generation
        await target.verify(vm_id)
        figures = await driver.release(vm_id, migration_id)
        assert figures.downtime_qemu_ms is not None
        assert figures.iterations
        assert here.pids() == []
        await there.ticking(vm_id, 10)
        here, driver = there, target
        stays.append(here)
    await driver.stop(vm_id, StopMode.FORCED, 0)
    lines = b"".join(host.console(vm_id) for host in stays)
    ticks = [(int(seq, 16), int(bad, 16)) for seq, bad in rom_machine.TICK.findall(lines)]
    assert [seq for seq, _ in ticks] == list(range(1, len(ticks) + 1))
    assert [bad for _, bad in ticks if bad] == []


async def test_progress_is_told_with_rate_and_iteration(hosts: Hosts) -> None:
    move = Move(hosts)
    told: list[Progress] = []
    to = await move.prepare(200)
    task = move.send(to, Goals(bandwidth_bytes_per_s=8_000_000), told.append)  # it writes ten times as much
    await until(lambda: any(seen.dirty_rate_bytes_per_s > 0 for seen in told), "an iteration")
    last = told[-1]
    assert last.total_bytes >= 32 << 20
    assert 0 < told[0].transferred_bytes < last.transferred_bytes
    assert last.remaining_bytes > 0
    assert last.iteration >= 2
    assert 0 < last.rate_bytes_per_s < 12_000_000
    await move.source.reclaim(move.vm_id, move.migration_id)
    with pytest.raises(MigrationFailed):
        await task


# -- disks and kinds of machines -------------------------------------------------------------------------------------


def disk(folder: Path, uid: int | None = None) -> DiskFile:
    """A qcow2 child of a qcow2 image."""
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*make, base, "16M"], check=True)
    subprocess.run([*make, "-b", base, "-F", "qcow2", top], check=True)
    if uid is not None:
        os.chown(top, uid, uid)
    base.chmod(0o644)
    return DiskFile(volume_id=an_id(), source=FileAt(top), format="qcow2", backing=(Layer(FileAt(base), "qcow2"),))


async def test_two_copies_never_run_on_one_disk(hosts: Hosts) -> None:
    move = Move(hosts)
    shared = disk(hosts.new().root)
    one = msgspec.structs.replace(move.one.launch(move.vm_id), disks=(shared,))
    other = msgspec.structs.replace(move.other.launch(move.vm_id), disks=(shared,))
    await move.source.start(one)
    to = await move.target.accept(other, Awaited(migration_id=move.migration_id, host=LOOPBACK))
    await move.send(to, Goals())
    await move.target.take_over(move.vm_id, move.migration_id, 2)
    with pytest.raises(MonitorFailed, match="lock"):
        await move.source.reclaim(move.vm_id, move.migration_id)
    assert status(move.source, move.vm_id) is S.HANDED_OFF
    assert status(move.target, move.vm_id) is S.RUNNING
    await move.source.release(move.vm_id, move.migration_id)


async def test_a_target_that_cannot_have_the_disk_stays_incoming(hosts: Hosts) -> None:
    move = Move(hosts)
    shared = disk(hosts.new().root)
    one = msgspec.structs.replace(move.one.launch(move.vm_id), disks=(shared,))
    other = msgspec.structs.replace(move.other.launch(move.vm_id), disks=(shared,))
    await move.source.start(one)
    to = await move.target.accept(other, Awaited(migration_id=move.migration_id, host=LOOPBACK))
    await move.send(to, Goals())
    await move.source.reclaim(move.vm_id, move.migration_id)
    with pytest.raises(MonitorFailed, match="lock"):
        await move.target.take_over(move.vm_id, move.migration_id, 2)
    assert status(move.target, move.vm_id) is S.INCOMING
    await move.target.discard(move.vm_id, move.migration_id)
    assert status(move.source, move.vm_id) is S.RUNNING


def kinds(host: Host, vm_id: str) -> dict[str, Launch]:
    plain = host.launch(vm_id, memory_mib=128)
    full = msgspec.structs.replace(
        with_spec(plain, guest_agent=True, vcpus=2),
        disks=(disk(host.root / vm_id, host.uid),),
        nics=(NicPlug(nic_id="n", mac="52:54:00:12:34:56", forwards=((80, 0),)),),
    )
    return {
        "q35": full,
        "microvm": msgspec.structs.replace(with_spec(full, machine=MachineKind.MICROVM)),
        "uefi": msgspec.structs.replace(with_spec(full, firmware=Firmware.UEFI), firmware=None),
    }


@pytest.mark.parametrize("kind", ["q35", "microvm", "uefi"])
async def test_every_kind_of_machine_starts_and_moves(hosts: Hosts, kind: str) -> None:
    if kind == "uefi" and find_uefi() is None:
        pytest.skip("OVMF is not installed")
    move = Move(hosts)
    launch = kinds(move.one, move.vm_id)[kind]
    there = move.other.launch(move.vm_id)
    await move.source.start(launch)
    there = msgspec.structs.replace(launch, run_dir=there.run_dir)
    to = await move.target.accept(there, Awaited(migration_id=move.migration_id, host=LOOPBACK))
    await move.send(to, Goals())
    assert (await move.target.take_over(move.vm_id, move.migration_id, 2)).report.status is S.RUNNING
    assert (await move.target.verify(move.vm_id)).status is S.RUNNING
    if kind != "uefi":
        await move.other.ticking(move.vm_id)


# -- who it runs as --------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run machines as another user")
async def test_as_root_each_machine_is_a_user_without_powers() -> None:
    groups = os.getgroups()
    os.setgroups([0, 4])  # as an agent under a service manager may have
    try:
        await _moved_without_powers()
    finally:
        os.setgroups(groups)


async def _moved_without_powers() -> None:
    async with rom_machine.hosts(NOBODY) as hosts:
        move = Move(hosts)
        shared = disk(hosts.new().root, NOBODY)
        await move.source.start(msgspec.structs.replace(move.one.launch(move.vm_id), disks=(shared,)))
        there = msgspec.structs.replace(move.other.launch(move.vm_id), disks=(shared,))
        to = await move.target.accept(there, Awaited(migration_id=move.migration_id, host=LOOPBACK))
        for driver in (move.source, move.target):
            lines = Path(f"/proc/{pid(driver, move.vm_id)}/status").read_text().splitlines()
            seen = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            assert seen["Uid"].split() == [str(NOBODY)] * 4
            assert seen["Gid"].split() == [str(NOBODY)] * 4
            assert seen["Groups"].strip() == ""
            assert {int(seen[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
            assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "1")
        await move.send(to, Goals())
        await move.target.take_over(move.vm_id, move.migration_id, 2)
        await move.target.verify(move.vm_id)
        await move.source.release(move.vm_id, move.migration_id)
        await move.other.ticking(move.vm_id)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs without root already")
@pytest.mark.skipif(not OPEN_TO_OTHERS, reason="another user cannot read this checkout")
def test_without_root_a_machine_starts_and_moves() -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with tempfile.TemporaryDirectory() as cache:
                rom_machine.CACHE = Path(cache)
                asyncio.run(_there())
            os._exit(0)
        except BaseException as wrong:
            sys.stderr.write(repr(wrong))
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


async def _there() -> None:
    async with rom_machine.hosts() as hosts:
        move = Move(hosts)
        await move.send(await move.prepare(), Goals())
        await move.target.take_over(move.vm_id, move.migration_id, 2)
        await move.other.ticking(move.vm_id)


# -- a hostile machine's directory ---------------------------------------------------------------------------------


async def test_a_monitor_that_leads_to_another_machine_is_not_used(hosts: Hosts) -> None:
    host, victim, evil = hosts.new(), an_id(), an_id()
    first = host.driver()
    await first.start(host.launch(victim))
    await first.start(host.launch(evil))
    await first.close()
    for name in ("agent.qmp", "rescue.qmp"):
        socket = host.root / evil / name
        socket.unlink()
        socket.symlink_to(host.root / victim / name)
    driver = host.driver()
    await driver.adopt([host.root / evil])
    assert status(driver, evil) is S.UNKNOWN
    with pytest.raises(NovaCronError):
        await driver.pause(evil)
    await host.ticking(victim)
    assert (await driver.stop(evil, StopMode.FORCED, 0)).status is S.STOPPED  # by its pid, which is its own
    await host.ticking(victim)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of two users")
async def test_a_record_that_the_machine_wrote_itself_is_not_believed() -> None:
    async with rom_machine.hosts(NOBODY) as hosts:
        host, vm_id = hosts.new(), an_id()
        first = host.driver()
        await first.start(host.launch(vm_id))
        await first.close()
        noted = host.root / vm_id / "machine.json"
        os.chown(noted, NOBODY, NOBODY)
        assert await host.driver().adopt(host.run_dirs()) == []


async def test_a_monitor_another_client_holds_is_unknown_until_it_is_free(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    first, second = host.driver(), host.driver()
    await first.start(host.launch(vm_id))
    (report,) = await second.adopt(host.run_dirs())
    assert report.status is S.UNKNOWN
    await first.close()
    await until(lambda: status(second, vm_id) is S.RUNNING, "the monitor's turn")
    assert (await second.pause(vm_id)).status is S.PAUSED
