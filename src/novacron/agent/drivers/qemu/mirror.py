"""Disks that move with their machine: mirrored into the target's own, over NBD under the migration's key.

begin → ready (alike, and kept so) → finish, while the guest stands; or drop, at whatever moment

A mirror goes on in QEMU whatever becomes of the agent; who asks again joins it. Sequence and pitfalls: measured on QEMU
7.2 and 10 (a ready mirror is cancelled, not completed: completing would put the source itself on the target's disk).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import msgspec

from novacron.agent.drivers.handoff import DiskReception
from novacron.agent.drivers.qemu import nbd, tls, trail
from novacron.agent.drivers.qemu.devices import VOLUME_NODES, node_of
from novacron.agent.drivers.qemu.exports import close_exports
from novacron.agent.drivers.qemu.look import disk_nodes, node_names
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.qmp import DEADLINE_S, Monitor
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, MonitorFailed, Reason
from novacron.model.blocks import BLOCK_BYTES

JOB = "mirror-"
KEY_ID = "disk-key"
PROGRESS_INTERVAL_S = 0.5
OPEN_TIMEOUT_S = 5  # QEMU does nothing else meanwhile
FINISH_DEADLINE_S = 30.0
DROP_DEADLINE_S = 0.7  # a mirror whose link works ends at once
NBD_NODE, FILL_NODE = "t", "f"  # for the first letter of the disk's own
ENDED = frozenset({"concluded", "null", "aborting"})


class Job(msgspec.Struct, rename="kebab"):
    """One entry of query-jobs."""

    id: str
    type: str
    status: str
    current_progress: int = 0
    total_progress: int = 0
    error: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Which disks are to be copied where. features: of this QEMU. bytes_per_s: at most so much of all of them together;
    0: as it goes. exports: by volume, what it is called there, if not as here.
    """

    migration_id: str
    to: DiskReception
    volume_ids: tuple[str, ...]
    features: tuple[str, ...]
    bytes_per_s: int = 0
    exports: Mapping[str, str] = {}

    def name_of(self, volume_id: str) -> str:
        """What the volume is called there."""
        return self.exports.get(volume_id, volume_id)


class Copied(msgspec.Struct, frozen=True):
    """How much of all disks has been copied, in bytes; both grow as the guest writes."""

    done_bytes: int
    total_bytes: int


async def begin(machine: Machine, order: Order, *, behind: bool = False) -> None:
    """Begin to mirror, or find it begun. The migration's key is in the machine's directory from then on.

    behind: the guest's writes never wait for the target's; else they do from the moment QEMU can keep both alike.
    Where the target holds what came before only new writes are mirrored, and the rest is `refill`'s: `record.filling`
    says so.

    :raise MigrationFailed: it could not begin; nothing of it is left.
    """
    monitor, record = machine.door(), machine.record
    tls.write(machine.run_dir, order.migration_id, order.to.key_hex, record.uid, record.gid)
    missing = await unbegun(monitor, order.volume_ids)
    if not missing:
        return
    async with all_or_none(machine):
        await tls.install(monitor, machine.run_dir, order.migration_id, "client", object_id=KEY_ID)
        nodes = await disk_nodes(monitor)
        going_on = await trail.taken_up(monitor, order.migration_id, order.to, {one: nodes[one] for one in missing})
        record.filling, record.hot = order.migration_id if going_on else "", {}
        machine.save()
        speed = part(order.bytes_per_s, len(order.volume_ids))
        for volume_id in missing:
            node, target = nodes[volume_id], NBD_NODE + node_of(volume_id)[1:]
            await monitor.execute("blockdev-add", _remote(order.name_of(volume_id), target, order.to))
            sync = await _sync(machine, order, volume_id, node, goes_on=volume_id in going_on)
            await start(monitor, volume_id, node, target, order.features, sync=sync, bytes_per_s=speed, behind=behind)


async def _sync(machine: Machine, order: Order, volume_id: str, node: str, *, goes_on: bool) -> str:
    """How much of it is to be mirrored (see `start`). What `refill` brings is open for it then."""
    there = order.name_of(volume_id)
    if goes_on:
        fill = FILL_NODE + node_of(volume_id)[1:]
        await machine.door().execute("blockdev-add", _remote(there, fill, order.to) | {"x-dirty-bitmap": nbd.DEPTH})
        return "none"
    own_part = volume_id in layered(machine) and there in order.to.layered
    noted = volume_id in order.to.resumable and await trail.begun(
        machine.door(), node, order.migration_id, own_part=own_part
    )
    # Of a disk that stands on nothing, into one that is blank, the top is as good as all.
    return "top" if own_part or noted else "full"


async def unbegun(monitor: Monitor, volume_ids: Sequence[str]) -> list[str]:
    """Those that no mirror was begun for."""
    known = {job.id for job in await jobs(monitor)}
    return [volume_id for volume_id in volume_ids if job_of(volume_id) not in known]


@contextlib.asynccontextmanager
async def all_or_none(machine: Machine) -> AsyncIterator[None]:
    """For a block that begins mirrors. :raise MigrationFailed: one could not begin; nothing of any is left."""
    try:
        yield
    except DriverError as wrong:
        await drop(machine)
        raise MigrationFailed(f"its disks cannot be copied: {wrong.message}", wrong.reasons) from wrong


def layered(machine: Machine) -> Collection[str]:
    """Its volumes that are children of an image here: where a copy is a child of the same one, only what is their own
    need be copied.
    """
    spec = machine.record.spec
    return {disk.volume_id for disk in spec.disks if disk.backing_digest} if spec else ()


def _remote(export: str, node: str, to: DiskReception) -> dict[str, object]:
    return {
        "driver": "nbd",
        "node-name": node,
        "server": {"type": "inet", "host": to.host, "port": str(to.port)},
        "export": export,
        "tls-creds": KEY_ID,
        "open-timeout": OPEN_TIMEOUT_S,
        "detect-zeroes": "unmap",
        "discard": "unmap",
    }


async def start(
    monitor: Monitor,
    volume_id: str,
    node: str,
    target: str,
    features: Collection[str],
    *,
    sync: str,
    bytes_per_s: int,
    finalize: bool = True,
    behind: bool = False,
) -> None:
    """Mirror the node into the target, which is open.

    sync: full; top: not what lies below them, which is the same; none: only what is written from now on.

    finalize: it ends as soon as it is told to; else it waits to be told so once more. behind: see `begin`.

    :raise MonitorFailed: it could not begin; the target is closed.
    """
    # Where it can be changed later, the guest's writes wait for the target only at the end (see `ready`).
    late = "qmp.block-job-change" in features and sync != "none"
    arguments = {
        "job-id": job_of(volume_id),
        "device": node,
        "target": target,
        "sync": sync,
        "copy-mode": "background" if late or behind else "write-blocking",
        "speed": bytes_per_s,
        "granularity": BLOCK_BYTES,  # see `trail`: a block comes whole or not at all
        "on-source-error": "report",
        "on-target-error": "report",
        "auto-dismiss": False,
        "auto-finalize": finalize,
    }
    try:
        await monitor.execute("blockdev-mirror", arguments)
    except MonitorFailed:
        await monitor.execute("blockdev-del", {"node-name": target})
        raise


async def ready(
    machine: Machine,
    volume_ids: Sequence[str],
    told: Callable[[Copied], None],
    features: Collection[str],
    stall_s: float,
) -> Copied:
    """Wait until target and source are alike and stay so: from then on each write of the guest's is in both.

    :raise MigrationFailed: a disk could not be copied, or nothing came of it for `stall_s`. What is left is `drop`ped
    by who takes it back.
    """
    moved_at_s, before = machine.clock.monotonic_s(), -1
    while True:
        found = await jobs(machine.door())
        _check(found, volume_ids)
        copied = Copied(sum(job.current_progress for job in found), sum(job.total_progress for job in found))
        told(copied)
        if all(job.status == "ready" for job in found):
            break
        now = machine.clock.monotonic_s()
        moved_at_s, before = (now, copied.done_bytes) if copied.done_bytes != before else (moved_at_s, before)
        if now - moved_at_s > stall_s:
            raise MigrationFailed(f"nothing of its disks was copied for {stall_s:g} s")
        await _news(machine)
    if "qmp.block-job-change" in features:
        for job in found:
            change = {"id": job.id, "type": "mirror", "copy-mode": "write-blocking"}
            await machine.door().execute("block-job-change", change)
    return copied


async def check_alike(machine: Machine, volume_ids: Sequence[str]) -> None:
    """:raise MigrationFailed: one of these disks is not being kept alike on both sides."""
    if not volume_ids:
        return
    found = await jobs(machine.door())
    _check(found, volume_ids)
    if machine.record.filling or any(job.status != "ready" for job in found):
        raise MigrationFailed("its disks are not yet alike on both sides")


async def _news(machine: Machine) -> None:
    """Wait until a job says something, or for a while: how far they are comes unasked from nobody."""
    before = dict(machine.jobs)
    with contextlib.suppress(DeadlineExceeded):
        await machine.until(lambda: machine.jobs != before or machine.ended, PROGRESS_INTERVAL_S, "copy")


async def finish(machine: Machine, volume_ids: Sequence[str]) -> None:
    """Let go of the target's disks, which hold all that the guest, which stands still, has written, on their storage:
    the last reference to one flushes it.

    :raise MigrationFailed: one of them may lack something: the source's are the only good ones.
    """
    monitor = machine.door()
    found = await jobs(monitor)
    _check(found, volume_ids, finishing=True)
    if machine.record.filling:
        raise MigrationFailed("not all that its disks hold has been copied")
    for job in found:
        if job.status == "ready":  # cancelled once ready, a mirror first writes what is left
            await monitor.execute("block-job-cancel", {"device": job.id})
    try:
        await _finalized(machine)
    except (DeadlineExceeded, MonitorFailed) as late:
        raise MigrationFailed(late.message) from late
    ended = await jobs(monitor)
    _check(ended, volume_ids, finishing=True)
    await _clear(monitor, ended)


async def complete(machine: Machine) -> None:
    """Have each device work with its mirror's target, and close what it worked with. Those that do so already: fine.

    All jobs come to where they only wait to be told, before the first is: what can go wrong goes wrong before.

    :raise MigrationFailed: none does. :raise MonitorFailed, DeadlineExceeded: some may.
    """
    monitor = machine.door()
    for job in await jobs(monitor):
        if job.status == "ready":
            await monitor.execute("job-complete", {"id": job.id})
    await _finalized(machine)
    await _clear(monitor, await jobs(monitor))


async def _finalized(machine: Machine) -> None:
    """Those that end only when they are told so are told, once all have come that far.

    :raise MigrationFailed: one of them did not come that far; none was told.
    :raise MonitorFailed: one of them failed after that.
    """
    await _until_all(machine, {"pending"})
    for job in await jobs(machine.door()):
        if job.status == "pending":
            await machine.door().execute("job-finalize", {"id": job.id})
    try:
        await _until_all(machine, set())
    except MigrationFailed as late:
        raise MonitorFailed(late.message, late.reasons) from late


async def _until_all(machine: Machine, also: set[str]) -> None:
    """:raise MigrationFailed: one of them failed."""
    give_up_s = machine.clock.monotonic_s() + FINISH_DEADLINE_S
    while True:
        found = await jobs(machine.door())
        _check(found, (), finishing=True)
        if all(job.status in ENDED | also for job in found):
            return
        if machine.clock.monotonic_s() > give_up_s:
            raise DeadlineExceeded(f"machine {machine.vm_id} does not finish copying its disks")
        await _news(machine)


async def drop(machine: Machine) -> None:
    """End every mirror, also over a link that hangs, and let go of its target. None: fine."""
    try:
        await _cancel(machine, DROP_DEADLINE_S)
    except DeadlineExceeded:
        await _pull(machine)
        await _cancel(machine, FINISH_DEADLINE_S)
    await _pull(machine)  # closing a target would flush it first, over whatever link
    await close_exports(machine)  # through which `refill` reaches it: that ends then, too
    async with machine.refilling:
        machine.record.filling, machine.record.hot = "", {}
    monitor = machine.door()
    await _clear(monitor, await jobs(monitor))
    with contextlib.suppress(MonitorFailed):  # it was never installed
        await tls.remove(monitor, object_id=KEY_ID)


async def _cancel(machine: Machine, deadline_s: float) -> None:
    """:raise DeadlineExceeded: QEMU does not answer, or they do not come to an end."""
    monitor = machine.door()
    found = await jobs(monitor, deadline_s)
    for job in found:
        if job.status not in ENDED:
            with contextlib.suppress(MonitorFailed):  # it has ended this moment
                await monitor.execute("block-job-cancel", {"device": job.id, "force": True}, deadline_s=deadline_s)
    await machine.until(lambda: _over(machine, found), deadline_s, "stop copying its disks")


async def _pull(machine: Machine) -> None:
    """Close the connections to the targets: what waits for a link that hangs, QEMU's main loop among it, fails then.

    Nothing is asked before, since nothing may be answered; one that is not connected is refused.
    """
    spec = machine.record.spec
    for disk in spec.disks if spec else ():
        for letter in (NBD_NODE, FILL_NODE):
            node = {"type": "block-node", "node-name": letter + node_of(disk.volume_id)[1:]}
            with contextlib.suppress(MonitorFailed):
                await machine.oob().execute_oob("yank", {"instances": [node]})


async def jobs(monitor: Monitor, deadline_s: float = DEADLINE_S) -> list[Job]:
    """The mirrors there are."""
    found = await monitor.ask(list[Job], "query-jobs", deadline_s=deadline_s)
    return [job for job in found if job.id.startswith(JOB)]


async def _clear(monitor: Monitor, ended: Sequence[Job]) -> None:
    """Their targets are closed, which flushes them: NBD's, and files of this node's that no device works with."""
    for job in ended:
        await monitor.execute("job-dismiss", {"id": job.id})
    there, used = await node_names(monitor), set((await disk_nodes(monitor)).values())
    for job in ended:
        name = job.id.removeprefix(JOB)
        targets = {letter + name for letter in (NBD_NODE, FILL_NODE, *VOLUME_NODES)} - used
        for target in sorted(targets & there):
            await monitor.execute("blockdev-del", {"node-name": target})


def _over(machine: Machine, found: Sequence[Job]) -> bool:
    return machine.ended or all(machine.jobs.get(job.id, job.status) in ENDED - {"aborting"} for job in found)


def _check(found: Sequence[Job], volume_ids: Sequence[str], *, finishing: bool = False) -> None:
    lost = {job_of(volume_id) for volume_id in volume_ids} - {job.id for job in found}
    if lost:
        raise MigrationFailed(f"the copying of {len(lost)} of its disks was called off")
    wrong = [job for job in found if job.error or (job.status in ENDED and not finishing)]
    if wrong:
        reasons = [Reason("qemu.mirror", job.error or job.status, subject=job.id.removeprefix(JOB)) for job in wrong]
        raise MigrationFailed(f"a disk could not be copied: {wrong[0].error or wrong[0].status}", reasons)


def part(bytes_per_s: int, count: int) -> int:
    """One disk's part of what all have together; 0, which is no limit, only of 0."""
    return max(1, bytes_per_s // count) if bytes_per_s else 0


def job_of(volume_id: str) -> str:
    """The id of the job that mirrors the volume."""
    return JOB + node_of(volume_id)[1:]
