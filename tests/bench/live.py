"""Live migration beside its floor and libvirt's: the same guest, between the same two nodes, turn by turn in one run.

Those whose turn it is not stand still. All are measured by the same client with the same definitions
(novacron.lab.measure). Wall time: from the request until the source's QEMU is gone.

    novacron     through its API, always over TLS
    floor        a bare script that drives QMP and does nothing else, TLS as in NovaCron (tests.bench.floor_moves)
    floor-clear  the same without TLS, for information
    libvirt      `virsh migrate --live --tls`, where it is installed
    libvirt-clear  the same without TLS; either is left out from where it damages its guest
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import Callable
from typing import NamedTuple

from novacron.lab.conversation import Talker
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles
from novacron.lab.guest.line import PORT
from novacron.lab.lab import Lab
from novacron.lab.network import Fabric, guest_address, node_address
from novacron.lab.screen import Screen
from tests.bench.contestants import Bare, Contestant, NovaCron, Peer
from tests.bench.floor import Template, template_of
from tests.bench.floor_moves import Floor
from tests.bench.guests import Guest, a_lab, bare_address
from tests.bench.libvirt import COMMAND, Domain, Libvirt, Machine, missing
from tests.bench.rows import Row, differences, p99, ratios, spread

MEMORY_MIB = 512
LOADS = {"idle": "dirty 0", "dirtying": "dirty 20 48"}  # MiB/s, working set in MiB
SETTLE_S = 0.7  # the guest has taken up its load, and the client knows its clock
DOWNTIME_RATIO, DOWNTIME_P99_MS, DOWNTIME_OF_PEER = 1.15, 100.0, 0.5
WALL_BEYOND_MS, WALL_OF_PEER = 150.0, 0.6


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


async def bench(rounds: int, screen: Screen) -> tuple[list[Run], list[str]]:
    """All runs in order, and what was left out and why."""
    async with a_lab(screen) as (lab, fabric, files), contextlib.AsyncExitStack() as stack:
        talker = await Talker.start(fabric.fabric)
        stack.push_async_callback(talker.close)
        contestants, left_out = await _gather(lab, fabric, stack, talker, files, screen)
        runs: list[Run] = []
        for number in range(rounds):
            # Whoever comes first in a round profits or suffers from what went before: take turns.
            turn = number % len(contestants)
            order = contestants[turn:] + contestants[:turn]
            for load, line in LOADS.items():
                for contestant in [one for one in order if one in contestants]:
                    try:
                        runs.append(await measure(contestant, talker, load, line, number))
                    except LabFailed as failure:
                        if not isinstance(contestant, Peer):
                            raise
                        left_out.append(f"{contestant.name} from round {number + 1} on: {failure.message}")
                        contestants.remove(contestant)
                    else:
                        screen.say(_sentence(runs[-1]))
        return runs, left_out


async def _gather(
    lab: Lab, fabric: Fabric, stack: contextlib.AsyncExitStack, talker: Talker, files: GuestFiles, screen: Screen
) -> tuple[list[Contestant], list[str]]:
    """Everybody's guest booted and resting."""
    contestants: list[Contestant] = []

    async def take(contestant: Contestant) -> None:
        stack.push_async_callback(contestant.end)
        talker.move(contestant.address, PORT)
        await talker.answered()
        talker.leave()
        await contestant.rest()
        contestants.append(contestant)
        screen.say(f"{contestant.name}: its guest answers")

    guest = await Guest.boot(lab, fabric, 0, MEMORY_MIB)
    await take(NovaCron(guest))
    template = template_of(lab.node(guest.vm.node or "").host_pid(guest.vm.pid or 0))
    for number, (name, tls) in enumerate({"floor": True, "floor-clear": False}.items(), start=1):
        await take(
            Bare(
                name,
                await asyncio.to_thread(a_floor, lab, fabric, template, name, number, tls=tls),
                bare_address(number),
            )
        )
    left_out = [reason] if (reason := missing()) else []
    if not reason:
        libvirt = await a_libvirt(lab, fabric, stack)
        like = Machine(files, guest.vm.machine_type or "q35", guest.vm.cpu_model or "qemu64", MEMORY_MIB)
        for number, (name, tls) in enumerate({"libvirt": True, "libvirt-clear": False}.items(), start=3):
            domain = Domain(libvirt, name, tls=tls)
            await domain.boot(like, number, guest_address(number))
            await take(Peer(name, domain, bare_address(number)))
    return contestants, left_out


def a_floor(lab: Lab, fabric: Fabric, template: Template, name: str, number: int, *, tls: bool = True) -> Floor:
    """A machine like that one, that only a script moves."""
    directory = lab.path / "floor"
    directory.mkdir(mode=0o711, exist_ok=True)
    hosts = [node_address(1), node_address(2)]
    return Floor(name, template, directory, fabric.nodes, hosts, number, guest_address(number), tls=tls)


async def a_libvirt(lab: Lab, fabric: Fabric, stack: contextlib.AsyncExitStack) -> Libvirt:
    """Its daemons run and end with the stack."""
    directory = lab.path / "libvirt"
    directory.mkdir()
    lab.note(COMMAND)
    libvirt = Libvirt(directory, fabric.nodes, [node_address(1), node_address(2)])
    stack.push_async_callback(libvirt.end)
    await libvirt.until_ready()
    return libvirt


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


def pairs(runs: list[Run], load: str, name: str, value: Callable[[Run], float]) -> tuple[list[float], list[float]]:
    """NovaCron's and another's values under one load, of the rounds in which both moved."""
    ours, theirs = (
        {run.round: value(run) for run in runs if (run.contestant, run.load) == (who, load)}
        for who in ("novacron", name)
    )
    numbers = sorted(ours.keys() & theirs.keys())
    return [ours[number] for number in numbers], [theirs[number] for number in numbers]


def rows(runs: list[Run]) -> list[Row]:
    """Downtime and wall time under each load."""
    return [row for load in LOADS if any(run.load == load for run in runs) for row in _rows(runs, load)]


def _rows(runs: list[Run], load: str) -> list[Row]:
    ours, floor = pairs(runs, load, "floor", lambda run: run.guest_ms)
    ratio, worst = statistics.median(ratios(ours, floor)), p99(ours)
    yield_downtime = Row(
        f"live downtime, guest-seen, {MEMORY_MIB} MiB {load}",
        f"≤ {DOWNTIME_RATIO} × floor, p99 < {DOWNTIME_P99_MS:.0f} ms",
        f"{spread(floor)} ms, p99 {p99(floor):.0f}",
        f"{spread(ours)} ms, p99 {worst:.0f}; {spread(ratios(ours, floor), digits=2)} × floor",
        ratio <= DOWNTIME_RATIO and worst < DOWNTIME_P99_MS,
        _beside(runs, load, lambda run: run.guest_ms, DOWNTIME_OF_PEER),
    )
    ours, floor = pairs(runs, load, "floor", lambda run: run.wall_ms)
    beyond = statistics.median(differences(ours, floor))
    wall = Row(
        f"live request → completed, {MEMORY_MIB} MiB {load}",
        f"≤ floor + {WALL_BEYOND_MS:.0f} ms",
        f"{spread(floor)} ms",
        f"{spread(ours)} ms; floor {spread(differences(ours, floor))} ms",
        beyond <= WALL_BEYOND_MS,
        _beside(runs, load, lambda run: run.wall_ms, WALL_OF_PEER),
    )
    return [yield_downtime, wall]


def _beside(runs: list[Run], load: str, value: Callable[[Run], float], goal: float) -> str:
    """Each of libvirt's, our part of it, and whether that is little enough."""
    words = []
    for name in ("libvirt", "libvirt-clear"):
        ours, theirs = pairs(runs, load, name, value)
        if not ours:
            continue
        part = ratios(ours, theirs)
        met = "met" if statistics.median(part) < goal else "NOT MET"
        words.append(f"{name} {spread(theirs)} ms, ours {spread(part, digits=2)} × of it (goal < {goal}: {met})")
    return "; ".join(words) or "-"


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


def median(runs: list[Run], contestant: str, load: str, field: str) -> float | None:
    """Of what that contestant could tell."""
    values = [
        value for run in runs if (run.contestant, run.load) == (contestant, load)
        if (value := getattr(run, field)) is not None
    ]  # fmt: skip
    return statistics.median(values) if values else None


def _sentence(run: Run) -> str:
    return (
        f"round {run.round + 1} {run.load:8} {run.contestant:13} wall {run.wall_ms:6.0f} ms, "
        f"guest {run.guest_ms:5.1f} ms, client {run.client_ms:5.1f} ms"
    )
