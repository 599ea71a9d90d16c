"""A guest that plain pre-copy cannot finish: it writes its working set faster than the capped link takes it away.

The floor shows that: after so many passes no less is left than at first. NovaCron gets the same guest and the same cap
and may do ever less: post-copy; only a pause, up to a downtime that is asked for; neither, and then it must say so in
advance. libvirt is given as long as the floor, then called off.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from typing import NamedTuple

from novacron.client import migrations
from novacron.errors import GoalsUnmet
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles
from novacron.lab.lab import Lab
from novacron.lab.network import Fabric, guest_address
from novacron.lab.screen import Screen
from novacron.model.migration import Goals
from tests.bench.floor import template_of
from tests.bench.floor_moves import Endless, Floor
from tests.bench.guests import Guest, a_lab, at
from tests.bench.libvirt import Domain, Machine, missing
from tests.bench.live import a_floor, a_libvirt
from tests.bench.rows import Row, spread

MIB = 1 << 20
MEMORY_MIB = 256
CAP_MIB = 32
LOAD = "dirty 100 48"  # MiB/s, working set in MiB: all of it within half a second, and 1.5 s of the link
PASSES, SECONDS = 10, 20.0
SETTLE_S = 1.5
FINISH_WITHIN_S = 60.0
POSTCOPY_DOWNTIME_MS = 500
PAUSE_DOWNTIME_MS = 8000


class Way(NamedTuple):
    """What NovaCron may do."""

    name: str
    goals: migrations.Goals


WAYS = (
    Way("post-copy allowed", migrations.Goals(max_downtime_ms=POSTCOPY_DOWNTIME_MS)),
    Way(
        "only a pause allowed", migrations.Goals(max_downtime_ms=PAUSE_DOWNTIME_MS, never_postcopy=True, may_pause=True)
    ),
    Way("neither allowed", migrations.Goals(never_postcopy=True)),
)


class Ended(NamedTuple):
    """One move of NovaCron's. refused: what it said in advance; failed: it had begun, and did not end; else empty."""

    way: str
    strategy: str = ""
    total_ms: float = 0.0
    downtime_ms: float = 0.0
    refused: str = ""
    took_to_say_ms: float = 0.0
    failed: str = ""


class Found(NamedTuple):
    """Of all rounds. peer: for each round what became of libvirt's."""

    floor: list[Endless]
    ours: list[Ended]
    peer: list[str]


async def measure(rounds: int, screen: Screen) -> Found:
    """Floor, every way of ours and libvirt in every round."""
    found = Found([], [], [])
    async with a_lab(screen) as (lab, fabric, files), contextlib.AsyncExitStack() as stack:
        guest = await Guest.boot(lab, fabric, 0, MEMORY_MIB)
        template = template_of(lab.node(guest.vm.node or "").host_pid(guest.vm.pid or 0))
        floor = await asyncio.to_thread(a_floor, lab, fabric, template, "floor", 1)
        stack.push_async_callback(asyncio.to_thread, floor.end)
        await at(fabric, 1, "clock")
        floor.rest()
        await guest.rest()
        domain = None if missing() else await _libvirt(lab, fabric, stack, files, guest)
        for number in range(rounds):
            found.floor.append(await _floor(fabric, floor))
            screen.say(f"round {number + 1}: floor: {found.floor[-1]}")
            for way in WAYS:
                found.ours.append(await _ours(lab, guest, way))
                screen.say(f"round {number + 1}: {found.ours[-1]}")
            if domain is not None:
                found.peer.append(await _peer(fabric, domain))
                screen.say(f"round {number + 1}: libvirt {found.peer[-1]}")
                if "damaged" in found.peer[-1]:
                    domain = None  # there is nothing more to be learnt from it
    return found


async def _libvirt(
    lab: Lab, fabric: Fabric, stack: contextlib.AsyncExitStack, files: GuestFiles, guest: Guest
) -> Domain:
    libvirt = await a_libvirt(lab, fabric, stack)
    domain = Domain(libvirt, "libvirt", tls=True)
    like = Machine(files, guest.vm.machine_type or "q35", guest.vm.cpu_model or "qemu64", MEMORY_MIB)
    await domain.boot(like, 2, guest_address(2))
    stack.push_async_callback(domain.end)
    await at(fabric, 2, "clock")
    await domain.rest()
    return domain


async def _floor(fabric: Fabric, floor: Floor) -> Endless:
    floor.wake()
    try:
        await at(fabric, 1, LOAD)
        await asyncio.sleep(SETTLE_S)
        goals = Goals(bandwidth_bytes_per_s=CAP_MIB * MIB)
        seen = await asyncio.to_thread(lambda: floor.try_precopy(goals, passes=PASSES, seconds=SECONDS))
        await at(fabric, 1, "dirty 0")
        return seen
    finally:
        floor.rest()


async def _ours(lab: Lab, guest: Guest, way: Way) -> Ended:
    await guest.wake()
    try:
        await guest.ask(LOAD)
        await asyncio.sleep(SETTLE_S)  # what is measured needs a past
        wish = migrations.MigrationCreate(
            vm=guest.vm.id, target_node=guest.other_node, bandwidth_bytes_per_s=CAP_MIB * MIB,
            finish_within_s=FINISH_WITHIN_S, max_downtime_ms=way.goals.max_downtime_ms,
            never_postcopy=way.goals.never_postcopy, may_pause=way.goals.may_pause,
        )  # fmt: skip
        began = time.monotonic()
        try:
            done = await guest.try_to_move(wish)
        except GoalsUnmet as unmet:
            return Ended(way.name, refused=unmet.message, took_to_say_ms=(time.monotonic() - began) * 1e3)
        finally:
            await guest.ask("dirty 0")
        if await guest.ask("check") != "0":
            raise LabFailed.because("the guest was damaged")
        figures = done.figures
        return Ended(
            way.name, done.strategy, figures.total_ms or 0.0, figures.downtime_stopped_ms or 0.0,
            failed="" if done.state == "completed" else f"{done.state}: {done.problem}",
        )  # fmt: skip
    finally:
        await guest.rest()


async def _peer(fabric: Fabric, domain: Domain) -> str:
    await domain.wake()
    try:
        await at(fabric, 2, LOAD)
        await asyncio.sleep(SETTLE_S)
        moving = asyncio.create_task(domain.migrate("--bandwidth", str(CAP_MIB)))
        done, _ = await asyncio.wait({moving}, timeout=SECONDS)
        if not done:
            await domain.call_off()
            with contextlib.suppress(LabFailed):
                await moving
            await at(fabric, 2, "dirty 0")
            return f"had not ended after {SECONDS:.0f} s"
        took_ms = moving.result()
        await at(fabric, 2, "dirty 0")
        whole = await at(fabric, 2, "check") == "0"
        return f"ended after {took_ms / 1e3:.1f} s" + ("" if whole else ", its guest damaged")
    finally:
        await domain.rest()


# -- what it comes to ----------------------------------------------------------------------------------------


def rows(found: Found) -> list[Row]:
    """One for each way."""
    ended = sum(one.ended for one in found.floor)
    passes = min(len(one.left) for one in found.floor)
    shrunk = statistics.median(one.left[-1] / one.left[0] for one in found.floor)
    floor = (
        f"ended in {ended} of {len(found.floor)}; called off after ≥ {SECONDS:.0f} s and ≥ {passes} passes, "
        f"{shrunk:.2f} × of what the first pass left still left"
    )
    peer = "; ".join(f"{found.peer.count(words)} × {words}" for words in dict.fromkeys(found.peer)) or "-"
    return [_row(way, [one for one in found.ours if one.way == way.name], floor, peer) for way in WAYS]


def _row(way: Way, seen: list[Ended], floor: str, peer: str) -> Row:
    what = f"dirtying guest that pre-copy cannot finish: {way.name}"
    refused = [one for one in seen if one.refused]
    if way.goals.max_downtime_ms is None:
        within = spread([one.took_to_say_ms for one in seen])
        said = f"refused in advance {len(refused)} of {len(seen)}, within {within} ms"
        return Row(what, "says in advance that it will not end", floor, said, len(refused) == len(seen), peer)
    goal = f"ends within {FINISH_WITHIN_S:.0f} s and {way.goals.max_downtime_ms} ms of downtime, or says in advance"
    moved = [one for one in seen if not one.refused]
    most_ms = way.goals.max_downtime_ms
    whole = [one for one in moved if not one.failed]
    kept = [one for one in whole if one.downtime_ms <= most_ms and one.total_ms <= FINISH_WITHIN_S * 1e3]
    words = f"kept to in {len(kept)} of {len(moved)}, refused in advance {len(refused)}"
    if whole:
        words += (
            f"; downtime {spread([one.downtime_ms for one in whole])} ms, "
            f"{spread([one.total_ms / 1e3 for one in whole], digits=1)} s in all, {whole[0].strategy}"
        )
    return Row(what, goal, floor, words, len(kept) == len(moved), peer)
