"""Blocks of a disk as their digests, from a QEMU whose disk is in use: so that the two sides of a move are compared.

Both sides export the disk, read-only, to a socket in the machine's own directory, for as long as one asking takes. The
target notes from before it continues which parts its guest writes (`watch`: a dirty bitmap in QEMU's memory): they are
no longer what came, and are told as written. What was written is looked up after the reading, so that nothing
which a write changed can pass for a difference, save a write under way at that very moment: who finds one asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Sequence

from novacron.agent.drivers.qemu import nbd
from novacron.agent.drivers.qemu.devices import node_of
from novacron.agent.drivers.qemu.exports import serving
from novacron.agent.drivers.qemu.look import disk_nodes
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.nbd import Extent, Session
from novacron.errors import DeadlineExceeded, MonitorFailed
from novacron.model.blocks import BLOCK_BYTES, MAX_BLOCKS, BlockDigests, Sample

SOCKET = "blocks.sock"
READ_DEADLINE_S = 50.0
MAX_EXTENTS = 1 << 16
_HELD = "Permission conflict on node"
_WATCH, _SEEN = "since-hand-over", "since-hand-over-seen"


async def watch(machine: Machine, volume_ids: Sequence[str]) -> None:
    """From now on note what is written to them. One that cannot be watched is told when its blocks are asked for."""
    if not volume_ids:
        return
    monitor = machine.door()
    adding = [_action("add", volume_id, name=_WATCH, granularity=BLOCK_BYTES) for volume_id in volume_ids]
    try:
        await monitor.execute("transaction", {"actions": adding})
    except MonitorFailed:
        if not monitor.connected:
            raise


async def unwatch(machine: Machine, volume_id: str) -> None:
    """Nobody asks any more. Not watched: fine."""
    with contextlib.suppress(MonitorFailed):
        await machine.door().execute("block-dirty-bitmap-remove", {"node": node_of(volume_id), "name": _WATCH})


async def sample(machine: Machine, volume_id: str, wanted: Sample) -> BlockDigests:
    """Blocks drawn by the seed, most of them where there is data, and what is in them."""
    async with _exported(machine, volume_id, nbd.ALLOCATION) as session:
        blocks = await _draw(session, wanted)
        return BlockDigests(blocks=blocks, digests=await _digests(session, blocks, session.size_bytes))


async def digests(machine: Machine, volume_id: str, blocks: Sequence[int], *, written: bool) -> BlockDigests:
    """What is in them; written: also which of them were written since they came here.

    :raise MonitorFailed: they cannot be read, or nobody noted what was written.
    """
    async with _exported(machine, volume_id, nbd.ALLOCATION) as session:
        found = await _digests(session, blocks, session.size_bytes)
    changed = await _written(machine, volume_id, blocks) if written else ()
    return BlockDigests(blocks=tuple(blocks), digests=found, written=changed)


async def hold(machine: Machine) -> None:
    """Have QEMU hold its disks again where it let go of them: it was sent while it was paused, and was taken back.

    A write to one that it does not hold would end it by an assertion.

    :raise MonitorFailed: another still holds one. Nothing else has changed.
    """
    if not machine.resume_first:
        return
    try:
        async with serving(machine, SOCKET):
            for volume_id, node in (await disk_nodes(machine.door())).items():
                await _hold(machine, volume_id, node)
    except OSError as wrong:
        raise MonitorFailed(f"the disks of machine {machine.vm_id} cannot be held again: {wrong}") from wrong


async def _hold(machine: Machine, volume_id: str, node: str) -> None:
    """QEMU takes hold of a disk that is to be exported, and does not say whether it could (7.2). To export it for
    writing is then refused in either case: because its device alone writes to it, or else because nobody may.
    """
    export = {"type": "nbd", "id": f"hold-{node_of(volume_id)}", "node-name": node, "name": volume_id}
    try:
        await machine.door().execute("block-export-add", export | {"writable": True})
    except MonitorFailed as refused:
        if _HELD not in refused.message:
            raise


@contextlib.asynccontextmanager
async def _exported(machine: Machine, volume_id: str, context: str, bitmap: str = "") -> AsyncIterator[Session]:
    monitor, node = machine.door(), node_of(volume_id)
    export = {"type": "nbd", "id": f"read-{node}", "node-name": node, "name": volume_id, "writable": False}
    try:
        async with serving(machine, SOCKET):
            await monitor.execute("block-export-add", export | ({"bitmaps": [bitmap]} if bitmap else {}))
            async with asyncio.timeout(READ_DEADLINE_S):
                reader, writer = await asyncio.open_unix_connection(sock=machine.run_dir.connect(SOCKET))
                session = Session(reader, writer)
                try:
                    await session.begin(volume_id, context)
                    yield session
                finally:
                    await session.end()
    except TimeoutError:
        raise DeadlineExceeded(f"the blocks of a disk were not read within {READ_DEADLINE_S:g} s") from None
    except OSError as wrong:
        raise MonitorFailed(f"the blocks of a disk cannot be read: {wrong}") from wrong


async def _digests(session: Session, blocks: Sequence[int], size_bytes: int) -> tuple[str, ...]:
    if len(blocks) > MAX_BLOCKS:
        raise MonitorFailed(f"at most {MAX_BLOCKS} blocks are read at once")
    found = []
    for block in blocks:
        offset = block * BLOCK_BYTES
        if offset >= size_bytes:
            found.append("")
            continue
        data = await session.read(offset, min(BLOCK_BYTES, size_bytes - offset))
        found.append(hashlib.blake2b(data, digest_size=16).hexdigest())
    return tuple(found)


async def _draw(session: Session, wanted: Sample) -> tuple[int, ...]:
    """Three quarters from where the disk has data, as far as that can be looked through, the rest from anywhere."""
    dice, total = random.Random(wanted.seed), -(-session.size_bytes // BLOCK_BYTES)  # noqa: S311 (no secret)
    filled: list[range] = []
    offset = looked = 0
    while offset < session.size_bytes and looked < MAX_EXTENTS:
        for length, flags in await session.extents(offset, session.size_bytes - offset):
            if not flags & nbd.HOLE and length:
                filled.append(range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)))
            offset += length
            looked += 1
    count = min(wanted.count, total)
    drawn = set(_pick(filled, count * 3 // 4, dice))
    while len(drawn) < count:
        drawn.add(dice.randrange(total))
    return tuple(sorted(drawn))


def _pick(filled: Sequence[range], count: int, dice: random.Random) -> list[int]:
    total = sum(map(len, filled))
    places = sorted(dice.sample(range(total), min(count, total)))
    found, before, at = [], 0, 0
    for part in filled:
        while at < len(places) and places[at] < before + len(part):
            found.append(part[places[at] - before])
            at += 1
        before += len(part)
    return found


async def _written(machine: Machine, volume_id: str, blocks: Sequence[int]) -> tuple[int, ...]:
    """Of a copy of the bitmap: one that still notes writes cannot be read."""
    monitor = machine.door()
    copying = [
        _action("add", volume_id, name=_SEEN, granularity=BLOCK_BYTES, disabled=True),
        _action("merge", volume_id, target=_SEEN, bitmaps=[_WATCH]),
    ]
    leftover = {"node": node_of(volume_id), "name": _SEEN}
    with contextlib.suppress(MonitorFailed):
        await monitor.execute("block-dirty-bitmap-remove", leftover)
    await monitor.execute("transaction", {"actions": copying})
    try:
        async with _exported(machine, volume_id, nbd.DIRTY.format(_SEEN), _SEEN) as session:
            return tuple([block for block in blocks if await _is_dirty(session, block)])
    finally:
        with contextlib.suppress(MonitorFailed):
            await monitor.execute("block-dirty-bitmap-remove", leftover)


async def _is_dirty(session: Session, block: int) -> bool:
    offset = block * BLOCK_BYTES
    length = min(BLOCK_BYTES, session.size_bytes - offset)
    if length <= 0:
        return False
    found: list[Extent] = await session.extents(offset, length)
    return bool(found[0][1] & 1)  # its granularity is a block, so one extent tells


def _action(verb: str, volume_id: str, **what: object) -> dict[str, object]:
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": node_of(volume_id), **what}}
