"""Warm and cold moves of a machine with a disk, beside the bare way: stop, migrate, cont; power button, boot.

The disk lies in a pool that both nodes share. A warm guest tells by its clock how long it was away, as a live one does;
a cold one is booted, so what counts is the longest silence that its client hears. (Of a warm one that is longer than it
was away: TCP waits ever longer before it tries again.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
from pathlib import Path
from typing import NamedTuple

from novacron.client import devices
from novacron.lab.conversation import Talker
from novacron.lab.failure import LabFailed
from novacron.lab.guest.line import PORT
from novacron.lab.network import guest_address, node_address
from novacron.lab.screen import Screen
from tests.bench.contestants import Bare, Contestant, NovaCron
from tests.bench.floor import Template, template_of
from tests.bench.floor_moves import Floor
from tests.bench.guests import Guest, a_lab, at, bare_address
from tests.bench.rows import Row, differences, ratios, spread

MEMORY_MIB = 256
DISK_BYTES = 2 << 30
BLOCKS = 256  # of 4 KiB, written before and compared after
SETTLE_S = 0.7
WARM_MS = 1000.0
COLD_BEYOND_MS = 2000.0


class Run(NamedTuple):
    """One move, in ms. still: how long the guest's clock stood; None: it was booted. tick: its longest other wait."""

    contestant: str
    round: int
    wall_ms: float
    client_ms: float
    still_ms: float | None
    tick_ms: float


async def measure(kind: str, rounds: int, screen: Screen) -> list[Run]:
    """The floor and NovaCron by turns."""
    async with a_lab(screen) as (lab, fabric, _), contextlib.AsyncExitStack() as stack:
        talker = await Talker.start(fabric.fabric)
        stack.push_async_callback(talker.close)
        guest = await Guest.boot(lab, fabric, 0, MEMORY_MIB, disks=(devices.DiskIn(size_bytes=DISK_BYTES),))
        template = template_of(lab.node(guest.vm.node or "").host_pid(guest.vm.pid or 0))
        directory = lab.path / "floor"
        directory.mkdir(mode=0o711)
        disk = await asyncio.to_thread(_disk, directory, template)
        hosts = [node_address(1), node_address(2)]
        floor = await asyncio.to_thread(
            lambda: Floor("floor", template, directory, fabric.nodes, hosts, 1, guest_address(1), disk=disk)
        )
        contestants: list[Contestant] = [NovaCron(guest, kind), Bare("floor", floor, bare_address(1), kind)]
        for number, contestant in enumerate(contestants):
            stack.push_async_callback(contestant.end)
            talker.move(contestant.address, PORT)
            await talker.answered()
            talker.leave()
            await at(fabric, number, f"write vda 0 {BLOCKS} 7")
            await contestant.rest()
        runs = []
        for turn in range(rounds):
            for number in (0, 1) if turn % 2 else (1, 0):
                moved = await _move(contestants[number], talker, kind, turn)
                if await at(fabric, number, f"compare vda 0 {BLOCKS} 7") != "0":
                    raise LabFailed.because(f"{moved.contestant}: its disk is another one than before")
                await contestants[number].rest()
                runs.append(moved)
                screen.say(f"round {turn + 1} {kind} {moved}")
        return runs


def _disk(directory: Path, template: Template) -> Path:
    made = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(made), str(DISK_BYTES)], check=True)
    os.chown(made, template.uid, template.gid)
    return made


async def _move(contestant: Contestant, talker: Talker, kind: str, turn: int) -> Run:
    """It is left awake. :raise LabFailed: it was booted where it was not to be, or the other way round."""
    await contestant.wake()
    talker.move(contestant.address, PORT)
    await talker.answered()
    await asyncio.sleep(SETTLE_S)
    before = await talker.status()
    await talker.begin()
    moved = await contestant.migrate()
    if kind == "cold":
        await talker.answered()  # it boots
    window = await talker.end()
    talker.leave()
    if (window.status.boot_id == before.boot_id) != (kind == "warm"):
        raise LabFailed.because(f"{contestant.name}: not the guest that was to come out of a {kind} move")
    still_ms = window.stood_still_ms if kind == "warm" else None
    return Run(contestant.name, turn, moved.wall_ms, window.client_gap_ms, still_ms, window.tick_gap_ms)


def rows(kind: str, runs: list[Run]) -> list[Row]:
    """How long it was away, beside the floor's: a warm guest by its own clock, a cold one as its client missed it."""
    ours, floor = (
        [run for run in sorted(runs, key=lambda run: run.round) if run.contestant == name]
        for name in ("novacron", "floor")
    )
    what = f"{kind}, {DISK_BYTES >> 30} GiB disk (shared pool), {MEMORY_MIB} MiB"
    if kind == "cold":
        return [_cold(f"{what}: the client's longest silence", ours, floor)]
    return [_warm(f"{what}: downtime, guest-seen", ours, floor)]


def _cold(what: str, ours: list[Run], floor: list[Run]) -> Row:
    missed, bare = ([run.client_ms for run in each] for each in (ours, floor))
    beyond = differences(missed, bare)
    return Row(
        what,
        f"< guest shutdown + boot + {COLD_BEYOND_MS / 1e3:.0f} s",
        f"{spread(bare)} ms",
        f"{spread(missed)} ms; floor {spread(beyond)} ms",
        statistics.median(beyond) < COLD_BEYOND_MS,
    )


def _warm(what: str, ours: list[Run], floor: list[Run]) -> Row:
    away, bare = ([(run.still_ms or 0.0) + run.tick_ms for run in each] for each in (ours, floor))
    missed = spread([run.client_ms for run in ours])
    return Row(
        what,
        f"< {WARM_MS:.0f} ms",
        f"{spread(bare)} ms",
        f"{spread(away)} ms; {spread(ratios(away, bare), digits=2)} × floor; the client's longest silence {missed} ms",
        statistics.median(away) < WARM_MS,
    )
