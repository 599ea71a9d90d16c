"""What the guest wrote since a copy of a disk was begun: the source's proof of what its target need not be sent again.

A dirty bitmap, named by the migration, in QEMU's memory alone: it is there before the copy begins, knows every write
since, and goes with its QEMU. So it can stand for nothing but the very disk that ran all the while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

import msgspec

from novacron.agent.drivers.base import DiskFile, FileAt
from novacron.agent.drivers.handoff import DiskReception
from novacron.agent.drivers.qemu.devices import node_of
from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.errors import MigrationFailed, MonitorFailed, Reason
from novacron.model.blocks import BLOCK_BYTES
from novacron.model.migration import COPY_LOST

PREFIX = "copy-"


class _Bitmap(msgspec.Struct):
    name: str = ""
    recording: bool = False
    inconsistent: bool = False
    granularity: int = 0


class _Image(msgspec.Struct, rename="kebab"):
    format: str = ""
    cluster_size: int = 0


_NAMES = {"node_name": "node-name", "bitmaps": "dirty-bitmaps", "depth": "backing_file_depth"}


class _Node(msgspec.Struct, rename=_NAMES):
    node_name: str
    image: _Image
    bitmaps: tuple[_Bitmap, ...] = ()
    depth: int = 1


def name(migration_id: str) -> str:
    """Of the bitmap."""
    return PREFIX + migration_id


async def tells(monitor: Monitor, disks: Sequence[DiskFile]) -> tuple[str, ...]:
    """(target) Those of which it can be told what has come: files that began empty and get whole blocks.

    What is no file is made of what a server has, and does not stay without a record that says so.
    """
    files = [one.volume_id for one in disks if isinstance(one.source, FileAt) and one.source.path.is_file()]
    found = await _look(monitor)
    images = {one: found[node_of(one)].image for one in files if node_of(one) in found}
    return tuple(
        one for one, image in images.items() if image.format == "qcow2" and 0 < image.cluster_size <= BLOCK_BYTES
    )


async def taken_up(monitor: Monitor, migration_id: str, to: DiskReception, nodes: Mapping[str, str]) -> Collection[str]:
    """Those of the volumes that go on from what their targets hold; their bitmaps have this migration's name then.

    nodes: by volume id. One whose copy was begun by this very migration goes on, too.

    :raise MigrationFailed: of a target that holds something it is not known here what it lacks (reason COPY_LOST).
    """
    found = await _look(monitor)
    names = {one: {bitmap.name for bitmap in found[node].bitmaps if _is_sound(bitmap)} for one, node in nodes.items()}
    own, earlier = name(migration_id), name(to.resumes)
    again = [one for one in nodes if own in names[one]]
    following = [one for one in nodes if one in to.resumed and one not in again]
    if any(earlier not in names[one] for one in following):
        why = Reason(COPY_LOST, "its machine has been started anew, or its disk changed", remedy="it is copied anew")
        raise MigrationFailed("an earlier copy of its disks cannot be gone on with", [why])
    for one in following:
        renaming = [
            action("add", nodes[one], name=own, granularity=BLOCK_BYTES),
            action("merge", nodes[one], target=own, bitmaps=[earlier]),
        ]
        await monitor.execute("transaction", {"actions": renaming})
    for one in (*again, *following):
        await _sweep(monitor, nodes[one], found[nodes[one]], own)
    return (*again, *following)


async def begun(monitor: Monitor, node: str, migration_id: str, *, own_part: bool) -> bool:
    """From now on what is written to it is noted; whether a copy of it can be gone on with that way.

    It cannot where the target has to get what lies below the disk here: all of it is written there first.
    """
    found = (await _look(monitor))[node]
    await _sweep(monitor, node, found, "")
    if not own_part and found.depth:
        return False
    try:
        wanted = {"node": node, "name": name(migration_id), "granularity": BLOCK_BYTES}
        await monitor.execute("block-dirty-bitmap-add", wanted)
    except MonitorFailed:
        if not monitor.connected:
            raise
        return False
    return True


def action(verb: str, node: str, **what: object) -> dict[str, object]:
    """Of a transaction."""
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": node, **what}}


async def _look(monitor: Monitor) -> dict[str, _Node]:
    found = await monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True})
    return {node.node_name: node for node in found}


async def _sweep(monitor: Monitor, node: str, found: _Node, but: str) -> None:
    """What earlier migrations left is of no use once another copy is made."""
    for bitmap in found.bitmaps:
        if bitmap.name.startswith(PREFIX) and bitmap.name != but:
            with contextlib.suppress(MonitorFailed):
                await monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": bitmap.name})


def _is_sound(bitmap: _Bitmap) -> bool:
    return bitmap.recording and not bitmap.inconsistent and bitmap.granularity == BLOCK_BYTES
