"""Brings a target that holds part of a disk what it lacks, while the guest writes on and its writes are mirrored.

    lacks = the disk's own blocks that the target's file does not have, and those the guest wrote since (see `trail`)

The target's file began empty, and its clusters are no larger than a block: what it has was copied whole, or is noted by
the trail. Blocks go in batches, through this agent; of each batch those that the guest wrote to meanwhile may have been
overwritten there by what was read before, and go again. What the guest never leaves alone is left for when it stands
still (`record.hot`): a few blocks at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from novacron.agent.drivers.qemu import nbd, trail
from novacron.agent.drivers.qemu.devices import node_of
from novacron.agent.drivers.qemu.exports import serving
from novacron.agent.drivers.qemu.look import disk_nodes, node_names
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.mirror import FILL_NODE, Copied
from novacron.agent.drivers.qemu.nbd import Session
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, MonitorFailed, NovaCronError
from novacron.model.blocks import BLOCK_BYTES

SOCKET = "refill.sock"
RUN_BLOCKS = 16
BATCH_BLOCKS = 1024
LANES = 4
HOT_BLOCKS = 32
TRIES = 3
"""So often in a row may it be a few blocks that are left, until they wait for the guest to stand still."""
_SINCE, _SEEN = "since-batch", "since-batch-seen"
_HERE, _THERE = "here", "there"

Open = Callable[[str, str], Awaitable[Session]]


class Refill:
    """`run` until all but a few blocks are there; `finish` when the guest stands still. bytes_per_s: 0: as it goes."""

    def __init__(self, machine: Machine, bytes_per_s: int, stall_s: float) -> None:
        self._machine = machine
        self._bytes_per_s = bytes_per_s
        self._stall_s = stall_s
        self._done_bytes = self._total_bytes = 0

    async def run(self, volume_ids: Sequence[str], told: Callable[[Copied], None]) -> Copied:
        """What was copied. None to be gone on with, or done before: nothing.

        :raise MigrationFailed: it could not be copied, or nothing came of it for `stall_s`.
        """
        machine = self._machine
        async with machine.refilling:
            if machine.record.filling:
                machine.record.hot = {}
                with _told_as_failure():
                    nodes, names = await disk_nodes(machine.door()), await node_names(machine.door())
                    for volume_id in volume_ids:
                        if _fill_node(volume_id) in names:
                            await self._fill(volume_id, nodes[volume_id], told)
                machine.record.filling = ""
                machine.save()
        return Copied(self._done_bytes, self._total_bytes)

    async def finish(self) -> None:
        """The guest stands still: bring the target what was left for now. :raise MigrationFailed"""
        record = self._machine.record
        if not record.hot:
            return
        with _told_as_failure():
            nodes = await disk_nodes(self._machine.door())
            for volume_id, blocks in record.hot.items():
                async with self._served(nodes[volume_id], _fill_node(volume_id)) as opened:
                    await self._copy(blocks, opened)
        record.hot = {}
        self._machine.save()

    async def _fill(self, volume_id: str, node: str, told: Callable[[Copied], None]) -> None:
        fill = _fill_node(volume_id)
        lacks = await self._lacking(node, fill)
        self._total_bytes += lacks.count(1) * BLOCK_BYTES
        await self._remove(node, _SINCE)
        await self._bitmap("add", node, name=_SINCE, granularity=BLOCK_BYTES)
        again: list[int] = []
        tries, position = 0, 0
        while tries < TRIES:
            batch, position = _batch(lacks, position, again)
            if not batch:
                break
            await self._bitmap("clear", node, name=_SINCE)
            async with self._served(node, fill) as opened:
                await self._copy(batch, opened)
            written = await self._noted(node, _SINCE)
            again = [block for block in batch if written[block]]
            self._total_bytes += len(again) * BLOCK_BYTES
            tries = tries + 1 if len(batch) <= HOT_BLOCKS else 0
            told(Copied(self._done_bytes, self._total_bytes))
        await self._remove(node, _SINCE)
        if again:
            self._machine.record.hot = {**self._machine.record.hot, volume_id: tuple(again)}

    async def _lacking(self, node: str, fill: str) -> bytearray:
        """One byte a block. What was written is looked up last: what a write of the guest's, mirrored meanwhile, made
        look as if it had come is in it.
        """
        async with self._served(node, fill) as opened:
            here, there = await opened(_HERE, nbd.DEPTH), await opened(_THERE, nbd.ALLOCATION)
            lacks = bytearray(-(-here.size_bytes // BLOCK_BYTES))
            async for start, end, flags in _extents(here):
                if flags == 1:
                    _mark(lacks, start // BLOCK_BYTES, -(-end // BLOCK_BYTES), 1)
            async for start, end, flags in _extents(there):
                if flags == nbd.HOLE:  # the depth, which stands in the place of the flags: its own layer
                    whole = end // BLOCK_BYTES if end < there.size_bytes else len(lacks)
                    _mark(lacks, -(-start // BLOCK_BYTES), whole, 0)
            if here.size_bytes != there.size_bytes:
                raise MonitorFailed("a disk and its copy differ in size")
            await here.end()
            await there.end()
        for block, written in enumerate(await self._noted(node, trail.name(self._machine.record.filling))):
            lacks[block] |= written
        return lacks

    async def _noted(self, node: str, bitmap: str) -> bytearray:
        """The blocks in it, one byte each: of a copy, since one that still notes writes cannot be read."""
        await self._remove(node, _SEEN)
        copying = [
            trail.action("add", node, name=_SEEN, granularity=BLOCK_BYTES, disabled=True),
            trail.action("merge", node, target=_SEEN, bitmaps=[bitmap]),
        ]
        await self._machine.door().execute("transaction", {"actions": copying})
        try:
            async with self._served(node, "", _SEEN) as opened:
                session = await opened(_HERE, nbd.DIRTY.format(_SEEN))
                found = bytearray(-(-session.size_bytes // BLOCK_BYTES))
                async for start, end, flags in _extents(session):
                    if flags & 1:
                        _mark(found, start // BLOCK_BYTES, -(-end // BLOCK_BYTES), 1)
                await session.end()
                return found
        finally:
            await self._remove(node, _SEEN)

    async def _copy(self, blocks: Sequence[int], opened: Open) -> None:
        most = self._bytes_per_s // (4 * LANES * BLOCK_BYTES) if self._bytes_per_s else RUN_BLOCKS
        runs = _runs(blocks, max(1, min(most, RUN_BLOCKS)))  # so small that nobody waits long for its turn

        async def lane() -> None:
            here, there = await opened(_HERE, nbd.ALLOCATION), await opened(_THERE, nbd.ALLOCATION)
            for first, count in runs:
                offset = first * BLOCK_BYTES
                length = min(count * BLOCK_BYTES, here.size_bytes - offset)
                async with asyncio.timeout(self._stall_s):
                    await there.write(offset, await here.read(offset, length))
                self._done_bytes += count * BLOCK_BYTES
                if self._bytes_per_s:
                    await self._machine.clock.sleep(length * LANES / self._bytes_per_s)
            await here.end()
            await there.end()

        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(lane())

    @contextlib.asynccontextmanager
    async def _served(self, node: str, fill: str, bitmap: str = "") -> AsyncIterator[Open]:
        """The disk, and the target when there is one, to be opened from here, for as long as this lasts."""
        machine, monitor = self._machine, self._machine.door()

        async def opened(name: str, context: str) -> Session:
            session = Session(*await asyncio.open_unix_connection(sock=machine.run_dir.connect(SOCKET)))
            await session.begin(name, context)
            return session

        async with serving(machine, SOCKET):
            here = {"type": "nbd", "id": f"fill-{node}", "node-name": node, "name": _HERE, "allocation-depth": True}
            await monitor.execute("block-export-add", here | ({"bitmaps": [bitmap]} if bitmap else {}))
            if fill:
                there = {"type": "nbd", "id": f"fill-{fill}", "node-name": fill, "name": _THERE, "writable": True}
                await monitor.execute("block-export-add", there)
            yield opened

    async def _bitmap(self, verb: str, node: str, **what: object) -> None:
        await self._machine.door().execute(f"block-dirty-bitmap-{verb}", {"node": node, **what})

    async def _remove(self, node: str, bitmap: str) -> None:
        with contextlib.suppress(MonitorFailed):  # it is not there
            await self._bitmap("remove", node, name=bitmap)


def _fill_node(volume_id: str) -> str:
    return FILL_NODE + node_of(volume_id)[1:]


@contextlib.contextmanager
def _told_as_failure() -> Iterator[None]:
    """Whatever of QEMU's or the link's goes wrong in it is a MigrationFailed."""
    try:
        yield
    except (DriverError, DeadlineExceeded, OSError) as wrong:
        raise _failure(wrong) from wrong
    except ExceptionGroup as group:  # of lanes, of which the first that failed ended the others
        raise _failure(group.exceptions[0]) from group


def _failure(wrong: Exception) -> MigrationFailed:
    words = wrong.message if isinstance(wrong, NovaCronError) else str(wrong) or "nothing was copied for too long"
    return MigrationFailed(f"its disks could not be copied: {words}")


def _batch(lacks: bytearray, position: int, again: list[int]) -> tuple[list[int], int]:
    """The blocks to copy next, in order, and from where to look on."""
    batch = list(again)
    while len(batch) < BATCH_BLOCKS:
        found = lacks.find(1, position)
        if found < 0:
            position = len(lacks)
            break
        batch.append(found)
        position = found + 1
    return sorted(set(batch)), position


def _runs(blocks: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Neighbours together, so many of them at most: the first, and how many."""
    at = 0
    while at < len(blocks):
        count = 1
        while count < most and at + count < len(blocks) and blocks[at + count] == blocks[at] + count:
            count += 1
        yield blocks[at], count
        at += count


def _mark(blocks: bytearray, start: int, end: int, value: int) -> None:
    if end > start:
        blocks[start:end] = bytes([value]) * (end - start)


async def _extents(session: Session) -> AsyncIterator[tuple[int, int, int]]:
    """Start, end and flags of each."""
    offset = 0
    while offset < session.size_bytes:
        for length, flags in await session.extents(offset, session.size_bytes - offset):
            yield offset, offset + length, flags
            offset += length
