"""Live migration beside its floor and libvirt's: `python -m tests.bench.migration [--rounds N] [--quick] [--json F]`.

Every contestant moves a guest of its own, the same guest with the same command line, between the same two nodes,
turn by turn in one run; those whose turn it is not stand still. All are measured by the same client with the same
definitions (novacron.lab.measure). Wall time: from the request until the source's QEMU is gone. Needs root.

    novacron    through its API
    floor       a bare script that drives QMP and does nothing else, TLS as in NovaCron (tests.bench.floor)
    floor-clear the same without TLS, for information
    libvirt     `virsh migrate --live`, where it is installed, without TLS; left out from where it damages its guest
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from novacron.client import migrations, vms
from novacron.lab.conversation import Talker
from novacron.lab.demo import IMAGE, upload
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.lab.guest.line import PORT
from novacron.lab.lab import Lab, open_lab, usual_path
from novacron.lab.network import BRIDGE, Fabric, guest_address, node_address
from novacron.lab.screen import Screen
from tests.bench.floor import Floor, template_of
from tests.bench.libvirt import COMMAND, Libvirt, missing

MEMORY_MIB = 512
LOADS = {"idle": "dirty 0", "dirtying": "dirty 20 48"}  # MiB/s, working set in MiB
SETTLE_S = 0.7  # the guest has taken up its load, and the client knows its clock
WALL_GOAL_MS = 250.0
DOWNTIME_GOAL = 1.25


class Run(NamedTuple):
    """One migration. start: the part until the target listens, where the contestant can tell."""

    contestant: str
    load: str
    round: int
    wall_ms: float
    start_ms: float | None
    guest_ms: float
    stood_still_ms: float
    client_ms: float
    qemu_ms: float | None
    bytes_transferred: int | None


class Moved(NamedTuple):
    """What a contestant itself can say of a migration."""

    wall_ms: float
    start_ms: float | None = None
    qemu_ms: float | None = None
    bytes_transferred: int | None = None


class Contestant(Protocol):
    name: str
    address: str

    async def migrate(self) -> Moved: ...

    async def rest(self) -> None: ...

    async def wake(self) -> None: ...

    async def end(self) -> None: ...


class NovaCron:
    """A VM moved through the API."""

    name = "novacron"

    def __init__(self, lab: Lab, vm: vms.Vm, address: str) -> None:
        self._lab, self._vm, self.address = lab, vm, address

    async def migrate(self) -> Moved:
        target = next(node for node in self._lab.nodes if node != self._vm.node)
        began = time.monotonic()
        asked = await self._lab.client.do(
            migrations.create(migrations.MigrationCreate(vm=self._vm.id, target_node=target))
        )
        done = await self._lab.client.wait_migration(asked.id)
        wall_ms = (time.monotonic() - began) * 1e3
        if done.state != "completed":
            raise LabFailed.because(f"the migration ended {done.state}: {done.problem}")
        self._vm = await self._lab.client.wait_vm(self._vm.id, "running")
        figures = done.figures
        return Moved(wall_ms, None, figures.downtime_qemu_ms, figures.bytes_transferred)

    async def rest(self) -> None:
        await self._lab.client.do(vms.pause(self._vm.id))
        await self._lab.client.wait_vm(self._vm.id, "paused")

    async def wake(self) -> None:
        await self._lab.client.do(vms.resume(self._vm.id))
        await self._lab.client.wait_vm(self._vm.id, "running")

    async def end(self) -> None:
        """The lab ends its machines."""


class Bare:
    """The floor, whose calls block."""

    def __init__(self, name: str, floor: Floor, address: str) -> None:
        self.name, self._floor, self.address = name, floor, address

    async def migrate(self) -> Moved:
        took = await asyncio.to_thread(self._floor.migrate)
        return Moved(took.wall_ms, took.start_ms, took.qemu_ms, took.bytes_transferred)

    async def rest(self) -> None:
        await asyncio.to_thread(self._floor.rest)

    async def wake(self) -> None:
        await asyncio.to_thread(self._floor.wake)

    async def end(self) -> None:
        await asyncio.to_thread(self._floor.end)


class Peer:
    """libvirt, with the machine type and CPU model of NovaCron's machine."""

    name = "libvirt"

    def __init__(self, libvirt: Libvirt, address: str) -> None:
        self._libvirt, self.address = libvirt, address

    async def migrate(self) -> Moved:
        return Moved(await self._libvirt.migrate())

    async def rest(self) -> None:
        await self._libvirt.rest()

    async def wake(self) -> None:
        await self._libvirt.wake()

    async def end(self) -> None:
        """Its daemons are ended with the stack."""


async def bench(rounds: int, loads: dict[str, str], screen: Screen) -> tuple[list[Run], list[str]]:
    """All runs in order, and what was left out and why."""
    files = await asyncio.to_thread(build, None, screen.say)
    async with (
        open_lab(usual_path("bench"), bridged=True, say=screen.say) as lab,
        contextlib.AsyncExitStack() as stack,
    ):
        await upload(lab, files, screen)
        talker = await Talker.start(lab.fabric.fabric if lab.fabric else None)
        stack.push_async_callback(talker.close)
        contestants, left_out = await _gather(lab, stack, talker, files, screen)
        runs: list[Run] = []
        for number in range(rounds):
            # Whoever comes first in a round profits or suffers from what went before: take turns.
            order = contestants[number % len(contestants) :] + contestants[: number % len(contestants)]
            for load, line in loads.items():
                for contestant in [one for one in order if one in contestants]:
                    try:
                        runs.append(await measure(contestant, talker, load, line, number))
                    except LabFailed as failure:
                        if not isinstance(contestant, Peer):
                            raise
                        left_out.append(f"libvirt from round {number + 1} on: {failure.message}")
                        contestants.remove(contestant)
                    else:
                        screen.say(_sentence(runs[-1]))
        return runs, left_out


async def _gather(
    lab: Lab, stack: contextlib.AsyncExitStack, talker: Talker, files: GuestFiles, screen: Screen
) -> tuple[list[Contestant], list[str]]:
    """Everybody's guest booted and resting."""
    fabric = lab.fabric
    if fabric is None:
        raise LabFailed.because("the bench needs the lab's bridge")
    contestants: list[Contestant] = []

    async def take(contestant: Contestant) -> None:
        stack.push_async_callback(contestant.end)
        talker.move(contestant.address, PORT)
        await talker.answered()
        talker.leave()
        contestants.append(contestant)
        screen.say(f"{contestant.name}: its guest answers")

    created = await lab.client.do(vms.create(_wanted(guest_address(0))))
    vm = await lab.client.wait_vm(created.id, "running")
    await take(NovaCron(lab, vm, _bare_address(0)))
    template = template_of(lab.node(vm.node or "").host_pid(vm.pid or 0))
    directory = lab.path / "floor"
    directory.mkdir(mode=0o711)
    hosts = [node_address(1), node_address(2)]
    for guest, (name, tls) in enumerate({"floor": True, "floor-clear": False}.items(), start=1):
        floor = await asyncio.to_thread(
            lambda name=name, tls=tls, guest=guest: Floor(  # type: ignore[misc]
                name, template, directory, fabric.nodes, hosts, guest, guest_address(guest), tls=tls
            )
        )
        await take(Bare(name, floor, _bare_address(guest)))
    left_out = [reason] if (reason := missing()) else []
    if not reason:
        await take(await _libvirt(lab, fabric, stack, files, vm))
    for contestant in contestants:
        await contestant.rest()
    return contestants, left_out


async def _libvirt(
    lab: Lab, fabric: Fabric, stack: contextlib.AsyncExitStack, files: GuestFiles, vm: vms.Vm
) -> Contestant:
    directory, guest = lab.path / "libvirt", 3
    directory.mkdir()
    lab.note(COMMAND)
    libvirt = Libvirt(directory, fabric.nodes, [node_address(1), node_address(2)])
    stack.push_async_callback(libvirt.end)
    await libvirt.boot(files, vm.machine_type or "q35", vm.cpu_model or "qemu64", MEMORY_MIB, guest_address(guest))
    return Peer(libvirt, _bare_address(guest))


def _wanted(address: str) -> vms.VmCreate:
    nic = vms.NicIn(network="bridge", bridge=BRIDGE)
    cmdline = f"novacron.ip={address}"
    return vms.VmCreate(
        name="bench", image=IMAGE, memory_mib=MEMORY_MIB, nics=[nic], kernel_cmdline=cmdline, node="node-1"
    )


def _bare_address(guest: int) -> str:
    return guest_address(guest).partition("/")[0]


async def measure(contestant: Contestant, talker: Talker, load: str, line: str, number: int) -> Run:
    """One migration of one contestant, its guest under that load.

    :raise LabFailed: the guest was damaged, or is another one.
    """
    await contestant.wake()
    try:
        talker.move(contestant.address, PORT)
        await talker.answered()
        await talker.ask(line)
        await asyncio.sleep(SETTLE_S)  # what is measured needs a past: the dirtier's working set, the clock's samples
        before = await talker.status()
        await talker.begin()
        moved = await contestant.migrate()
        window = await talker.end()
        if window.status.boot_id != before.boot_id or await talker.ask("check") != "0" or window.status.pages_bad:
            raise LabFailed.because(f"{contestant.name} damaged its guest")
        await talker.ask("dirty 0")
        talker.leave()
    finally:
        await contestant.rest()
    return Run(
        contestant.name, load, number, moved.wall_ms, moved.start_ms, window.guest_downtime_ms, window.stood_still_ms,
        window.client_gap_ms, moved.qemu_ms, moved.bytes_transferred,
    )  # fmt: skip


# -- what it comes to ----------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """NovaCron against the floor under one load: medians over the rounds, the difference taken pair by pair."""

    load: str
    wall_difference_ms: float
    guest_ratio: float
    client_ratio: float

    @property
    def wall_met(self) -> bool:
        return self.wall_difference_ms <= WALL_GOAL_MS

    @property
    def downtime_met(self) -> bool:
        return self.guest_ratio <= DOWNTIME_GOAL


def median(runs: list[Run], contestant: str, load: str, field: str) -> float | None:
    values = [
        value for run in runs if (run.contestant, run.load) == (contestant, load)
        if (value := getattr(run, field)) is not None
    ]  # fmt: skip
    return statistics.median(values) if values else None


def verdict(runs: list[Run], load: str) -> Verdict:
    """The median of the rounds' differences of walls, and the ratios of median downtimes."""
    ours, floor = (
        {run.round: run for run in runs if (run.contestant, run.load) == (name, load)} for name in ("novacron", "floor")
    )
    pairs = [(ours[number], floor[number]) for number in sorted(ours.keys() & floor.keys())]
    return Verdict(
        load,
        statistics.median(mine.wall_ms - bare.wall_ms for mine, bare in pairs),
        statistics.median(mine.guest_ms for mine, _ in pairs) / statistics.median(bare.guest_ms for _, bare in pairs),
        statistics.median(mine.client_ms for mine, _ in pairs) / statistics.median(bare.client_ms for _, bare in pairs),
    )


COLUMNS = {
    "wall ms": "wall_ms",
    "of it start": "start_ms",
    "guest ms": "guest_ms",
    "stood still": "stood_still_ms",
    "client ms": "client_ms",
    "QEMU ms": "qemu_ms",
}


def table(runs: list[Run]) -> list[str]:
    """Medians, a line for each load and contestant."""
    lines = ["", f"{'medians':24}" + "".join(f"{name:>13}" for name in COLUMNS) + f"{'MB':>8}"]
    for load, name in dict.fromkeys((run.load, run.contestant) for run in sorted(runs, key=lambda run: run.load)):
        cells = [median(runs, name, load, field) for field in COLUMNS.values()]
        sent = median(runs, name, load, "bytes_transferred")
        shown = "".join(f"{'-' if cell is None else format(cell, '.1f'):>13}" for cell in cells)
        lines.append(f"{load + ' ' + name:24}{shown}{'-' if sent is None else format(sent / 1e6, '.0f'):>8}")
    return lines


def conclusions(verdicts: list[Verdict]) -> list[str]:
    lines = [""]
    for each in verdicts:
        wall, downtime = ("met" if met else "NOT MET" for met in (each.wall_met, each.downtime_met))
        difference, guest, client = each.wall_difference_ms, each.guest_ratio, each.client_ratio
        lines.append(f"{each.load}: wall time is the floor's {difference:+.0f} ms; goal {WALL_GOAL_MS:+.0f} ms: {wall}")
        lines.append(
            f"{each.load}: the guest lost {guest:.2f} x the time it lost on the floor, the client {client:.2f} x; "
            f"goal for the guest {DOWNTIME_GOAL:.2f} x: {downtime}"
        )
    return lines


def _sentence(run: Run) -> str:
    return (
        f"round {run.round + 1} {run.load:8} {run.contestant:11} wall {run.wall_ms:6.0f} ms, "
        f"guest {run.guest_ms:5.1f} ms, client {run.client_ms:5.1f} ms"
    )


def as_data(runs: list[Run], verdicts: list[Verdict], left_out: list[str]) -> dict[str, object]:
    """Everything, for --json."""
    return {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load_1m": os.getloadavg()[0]},
        "memory_mib": MEMORY_MIB,
        "loads": LOADS,
        "runs": [run._asdict() for run in runs],
        "verdicts": [
            each._asdict() | {"wall_met": each.wall_met, "downtime_met": each.downtime_met} for each in verdicts
        ],
        "left_out": left_out,
    }


def main() -> None:
    """Run it. The exit status says whether it ran, not whether the goals were met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.migration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two rounds: does it work, not how fast is it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the bench lays a network of its own: run it as root")
    screen = Screen(sys.stdout)
    runs, left_out = asyncio.run(bench(2 if given.quick else given.rounds, LOADS, screen))
    verdicts = [verdict(runs, load) for load in LOADS]
    screen.lines(*table(runs), *conclusions(verdicts), *(f"left out: {reason}" for reason in left_out))
    if given.json:
        given.json.write_text(json.dumps(as_data(runs, verdicts, left_out), indent=1))


if __name__ == "__main__":
    main()
