"""A machine that stands still because a disk could not be written: which volume, why, and going on when there is room.

QEMU keeps the request that failed and does it again when the machine continues, so nothing is lost meanwhile. It
continues by itself as soon as the file system of every full volume has room; nobody has to remember it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from novacron.agent.drivers.qemu.devices import DISK, device_in
from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, DriverError, StateConflict
from novacron.model.machine import MachineReport, MachineStatus

FIRST_LOOK_S = 0.5
LAST_LOOK_S = 5.0
BLIND_S = 10.0  # of a pool that is no file system nothing is known but by trying
ENOUGH_BYTES = 1 << 20


class _Inserted(msgspec.Struct):
    file: str


class _Block(msgspec.Struct, rename="kebab"):
    qdev: str = ""
    io_status: str = "ok"
    inserted: _Inserted | None = None


class Full(msgspec.Struct, frozen=True):
    """A volume whose storage has no room; where: its file, as far as it is one."""

    volume_id: str
    where: str


async def failing(monitor: Monitor) -> tuple[str, tuple[Full, ...]]:
    """Why a machine with an I/O error stands still, in one sentence, and the volumes that have no room.

    :raise MonitorFailed, DeadlineExceeded
    """
    blocks = [one for one in await monitor.ask(list[_Block], "query-block") if one.io_status != "ok"]
    full = tuple(
        Full(device_in(one.qdev).removeprefix(DISK), one.inserted.file if one.inserted else "")
        for one in blocks
        if one.io_status == "nospace"
    )
    if full:
        names = ", ".join(one.volume_id for one in full)
        return f"there is no room left where volume {names} is stored; it goes on by itself when there is", full
    names = ", ".join(device_in(one.qdev).removeprefix(DISK) for one in blocks) or "of it"
    return f"a disk could not be read or written (volume {names}); it goes on when resumed", ()


def has_room(full: tuple[Full, ...]) -> bool | None:
    """Whether every one can be written again; None: it cannot be told. Blocks as long as the file system does."""
    seen: list[bool] = []
    for one in full:
        if not one.where.startswith("/") or Path(one.where).is_relative_to("/dev"):
            return None
        try:
            found = os.statvfs(one.where)
        except OSError:
            return False
        seen.append(found.f_bavail * found.f_frsize >= ENOUGH_BYTES)
    return all(seen)


async def go_on(
    full: Callable[[], tuple[Full, ...]], resume: Callable[[], Awaitable[MachineReport]], clock: Clock
) -> None:
    """Look until there is room, then continue; ends when the machine no longer stands still for want of it."""
    pause_s = FIRST_LOOK_S
    while full():
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, LAST_LOOK_S)
        room = await asyncio.to_thread(has_room, full())
        if room is None:
            pause_s = BLIND_S
        if room is False or not full():
            continue
        try:
            if (await resume()).status is MachineStatus.RUNNING:
                return  # if it fills up again, it is said again
        except (DriverError, StateConflict, DeadlineExceeded):
            continue
