"""Snapshots of a machine whose process lives: inside its qcow2 disks, under the snapshot's id, all of them or none.

    disks alone        one `transaction` over all disks; the guest goes on, its writes wait a moment
    with memory        QEMU's job `snapshot-save`; the guest stands still while it is written, QEMU answers nothing
    quiesced           between freeze and thaw of the guest's file systems; what froze is noted, so that another agent
                       process thaws what this one leaves frozen

A job that outlives the verb that began it (the agent died, the caller left) is joined by the next one.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from novacron.agent.drivers.base import Beside, Taken
from novacron.agent.drivers.qemu import guest_agent
from novacron.agent.drivers.qemu.blocks import hold
from novacron.agent.drivers.qemu.devices import DISK, device_in
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET, Machine
from novacron.errors import (
    DeadlineExceeded,
    DriverError,
    MonitorFailed,
    NovaCronError,
    Reason,
    StateConflict,
    Unsupported,
)
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.snapshot import Consistency

FREEZE_DEADLINE_S = 10.0
THAW_DEADLINE_S = 10.0
THAW_PAUSE_S = 1.0
JOB_DEADLINE_S = 1800.0
STILL_DEADLINE_S = 10.0
_STANDS = (MachineStatus.RUNNING, MachineStatus.PAUSED)


class Point(msgspec.Struct, rename="kebab"):
    """One snapshot inside a disk. vm_state_size: 0, or what the memory took (it lies in one of the disks)."""

    name: str
    vm_state_size: int = 0


class _Image(msgspec.Struct):
    snapshots: list[Point] = []


class _Inserted(msgspec.Struct, rename="kebab"):
    image: _Image
    drv: str
    ro: bool
    node_name: str = ""


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class DiskNode(msgspec.Struct, frozen=True):
    """A disk of a running machine: its node, and the snapshots in it by name."""

    node: str
    format: str
    points: dict[str, Point]


class Job(msgspec.Struct):
    id: str
    status: str
    error: str = ""


async def take(machine: Machine, snapshot_id: str, *, memory: bool, quiesce: bool, beside: Beside | None) -> Taken:
    """As the contract says. :raise Unsupported, StateConflict, MonitorFailed, DeadlineExceeded"""
    if machine.ended:
        raise machine.died()
    if machine.leaving or machine.status not in _STANDS:
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, ("running", "paused"), "snapshot")
    await hold(machine)
    nodes = await _own(machine, memory=memory)
    if memory:
        return await _with_memory(machine, snapshot_id, nodes)
    async with _quiet(machine, quiesce=quiesce), _still(machine, needed=beside is not None) as stood:
        if beside is not None:
            await beside()
        stood.append(await _of_disks(machine, snapshot_id, nodes))
    consistency = Consistency.QUIESCED if quiesce else Consistency.CRASH
    return Taken(consistency=consistency, stood_still_ms=max(stood))


async def delete(machine: Machine, snapshot_id: str) -> None:
    """Take it out of every disk, its memory with it. A snapshot still being written is waited for."""
    if machine.ended:
        raise machine.died()
    await _outlived(machine, f"save-{snapshot_id}")
    await hold(machine)
    nodes = [found for found in await disks(machine) if snapshot_id in found.points]
    if any(found.points[snapshot_id].vm_state_size for found in nodes):
        wanted = {"tag": snapshot_id, "devices": [found.node for found in nodes]}
        await _job(machine, f"delete-{snapshot_id}", "snapshot-delete", wanted)
        return
    for found in nodes:
        arguments = {"device": found.node, "name": snapshot_id}
        await machine.door().execute("blockdev-snapshot-delete-internal-sync", arguments, deadline_s=STILL_DEADLINE_S)


async def load(machine: Machine, snapshot_id: str) -> None:
    """Give a machine that has not begun to run the disks and the memory of the snapshot.

    :raise Unsupported: the snapshot holds no memory, or not of all its disks. :raise MonitorFailed
    """
    nodes = await disks(machine)
    homes = [found.node for found in nodes if _memory_of(found, snapshot_id)]
    missing = [found.node for found in nodes if snapshot_id not in found.points]
    if not homes or missing:
        lacks = f"its {', '.join(missing)} were not part of it" if missing else "it holds no memory"
        raise Unsupported(f"machine {machine.vm_id} cannot go back to snapshot {snapshot_id}: {lacks}")
    wanted = {"tag": snapshot_id, "vmstate": homes[0], "devices": [found.node for found in nodes]}
    await _job(machine, f"load-{snapshot_id}", "snapshot-load", wanted)


async def disks(machine: Machine) -> list[DiskNode]:
    """The disks it may write, in the order of its board. Drives, the seed and the firmware's store are none."""
    blocks = await machine.door().ask(list[_Block], "query-block")
    return [
        DiskNode(
            one.inserted.node_name, one.inserted.drv, {point.name: point for point in one.inserted.image.snapshots}
        )
        for one in blocks
        if one.inserted is not None and not one.inserted.ro and device_in(one.qdev).startswith(DISK)
    ]


def thaw_later(machine: Machine) -> None:
    """An agent died between freeze and thaw: thaw, again and again until the guest says so or the machine ends."""
    if machine.record.frozen:
        machine.later(_until_thawed(machine))


# -- the ways ------------------------------------------------------------------------------------------------


async def _own(machine: Machine, *, memory: bool) -> list[DiskNode]:
    """The disks that keep snapshots themselves. :raise Unsupported: memory has nowhere to go."""
    found = await disks(machine)
    others = [one.node for one in found if one.format != "qcow2"]
    if memory and (others or not found):
        why = f"{', '.join(others)} of it are not qcow2" if others else "it has no disk"
        raise Unsupported(
            f"a snapshot of machine {machine.vm_id} cannot hold its memory: {why}",
            [
                Reason(
                    "snapshot.no_place_for_memory",
                    "memory is kept in a qcow2 disk, and all disks must be of one moment with it",
                    subject=machine.vm_id,
                    remedy="take one without memory, or keep its disks in a directory or NFS pool",
                )
            ],
        )
    return [one for one in found if one.format == "qcow2"]


async def _with_memory(machine: Machine, snapshot_id: str, nodes: Sequence[DiskNode]) -> Taken:
    job_id = f"save-{snapshot_id}"
    joined = await _outlived(machine, job_id)
    nodes = [found for found in await disks(machine) if found.format == "qcow2"] if joined else nodes
    if not all(snapshot_id in found.points for found in nodes):
        await _forget_parts(machine, snapshot_id, nodes)
        wanted = {"tag": snapshot_id, "vmstate": nodes[0].node, "devices": [found.node for found in nodes]}
        asked_at_s = machine.clock.monotonic_s()
        await _job(machine, job_id, "snapshot-save", wanted)
        stood_still_ms = _stood_ms(machine, asked_at_s)
        nodes = await disks(machine)
    else:
        stood_still_ms = 0.0
    size = sum(_memory_of(found, snapshot_id) for found in nodes)
    return Taken(consistency=Consistency.MEMORY, memory_bytes=size, stood_still_ms=stood_still_ms)


async def _of_disks(machine: Machine, snapshot_id: str, nodes: Sequence[DiskNode]) -> float:
    """How many ms QEMU took for it; 0 when it was there."""
    if not nodes or all(snapshot_id in found.points for found in nodes):
        return 0.0
    await _forget_parts(machine, snapshot_id, nodes)
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": found.node, "name": snapshot_id}}
        for found in nodes
    ]
    began_s = machine.clock.monotonic_s()
    await machine.door().execute("transaction", {"actions": actions}, deadline_s=STILL_DEADLINE_S)
    return (machine.clock.monotonic_s() - began_s) * 1e3


async def _forget_parts(machine: Machine, snapshot_id: str, nodes: Sequence[DiskNode]) -> None:
    """QEMU died while it wrote: some disks have it, others not. They are of no moment."""
    if any(snapshot_id in found.points for found in nodes):
        await delete(machine, snapshot_id)


@contextlib.asynccontextmanager
async def _still(machine: Machine, *, needed: bool) -> AsyncIterator[list[float]]:
    """The guest stands still inside, when needed; a list of times in ms, to which how long it did is added."""
    stood: list[float] = [0.0]
    stops = needed and machine.status is MachineStatus.RUNNING
    began_s = machine.clock.monotonic_s()
    if stops:
        await machine.door().execute("stop")
    try:
        yield stood
    finally:
        if stops:
            await machine.door().execute("cont")
            await machine.refresh()
            stood.append((machine.clock.monotonic_s() - began_s) * 1e3)


def _stood_ms(machine: Machine, since_s: float) -> float:
    stopped_s, went_on_s = (machine.seen_at_s.get(name, 0.0) for name in ("STOP", "RESUME"))
    return max(0.0, went_on_s - stopped_s) * 1e3 if stopped_s >= since_s else 0.0


def _memory_of(found: DiskNode, snapshot_id: str) -> int:
    point = found.points.get(snapshot_id)
    return point.vm_state_size if point else 0


# -- quiet file systems --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _quiet(machine: Machine, *, quiesce: bool) -> AsyncIterator[None]:
    """The guest's file systems are frozen inside; thawed whatever happens. :raise Unsupported: nobody to ask."""
    if not quiesce:
        yield
        return
    if not machine.record.guest_agent or machine.status is not MachineStatus.RUNNING:
        lacks = "has no channel to a guest agent" if not machine.record.guest_agent else "does not run"
        reason = Reason("guest_agent.missing", f"it {lacks}", machine.vm_id, "take the snapshot without quiesce")
        raise Unsupported(f"the file systems of machine {machine.vm_id} cannot be frozen: it {lacks}", [reason])
    machine.record.frozen = True
    machine.save()
    try:
        try:
            await guest_agent.freeze(machine.run_dir.connect(GUEST_AGENT_SOCKET), _number(), FREEZE_DEADLINE_S)
        except (MonitorFailed, DeadlineExceeded, OSError) as wrong:
            raise _unfrozen(machine, wrong) from wrong
        yield
    finally:
        if not await _thaw(machine):
            thaw_later(machine)


async def _thaw(machine: Machine) -> bool:
    """Whether nothing of it is frozen any more."""
    if not machine.ended:
        try:
            await guest_agent.thaw(machine.run_dir.connect(GUEST_AGENT_SOCKET), _number(), THAW_DEADLINE_S)
        except (MonitorFailed, DeadlineExceeded, OSError):
            return False
    machine.record.frozen = False
    machine.save()
    return True


async def _until_thawed(machine: Machine) -> None:
    while machine.record.frozen and not machine.ended and not await _thaw(machine):
        await machine.clock.sleep(THAW_PAUSE_S)


def _unfrozen(machine: Machine, wrong: Exception) -> DriverError:
    said = [one.message for one in wrong.reasons] if isinstance(wrong, NovaCronError) else []
    words = "; ".join([str(wrong), *said])
    reason = Reason("guest_agent.failed", words, machine.vm_id, "start qemu-guest-agent in it, or do without quiesce")
    return Unsupported(f"the file systems of machine {machine.vm_id} cannot be frozen: {words}", [reason])


def _number() -> int:
    return secrets.randbits(31)


# -- QEMU's jobs ---------------------------------------------------------------------------------------------


async def _job(machine: Machine, job_id: str, command: str, arguments: Mapping[str, object]) -> None:
    """Have it done and see its end; one of that id under way is joined. :raise MonitorFailed: QEMU's words."""
    if await _outlived(machine, job_id):
        return
    machine.saving = True  # QEMU answers nothing meanwhile, and that is no sign of trouble
    try:
        await machine.door().execute(command, {"job-id": job_id, **arguments})
        await _concluded(machine, job_id)
    finally:
        machine.saving = False
        machine.look_later()
    await _dismiss(machine, job_id)


async def _outlived(machine: Machine, job_id: str) -> bool:
    """Wait for a job that another verb began; whether there was one. :raise MonitorFailed: it failed."""
    jobs = {job.id: job for job in await machine.door().ask(list[Job], "query-jobs")}
    if job_id not in jobs:
        return False
    machine.jobs[job_id] = jobs[job_id].status
    await _concluded(machine, job_id)
    await _dismiss(machine, job_id)
    return True


async def _concluded(machine: Machine, job_id: str) -> None:
    await machine.until(
        lambda: machine.ended or machine.jobs.get(job_id) == "concluded", JOB_DEADLINE_S, f"end its job {job_id}"
    )
    if machine.ended:
        raise machine.died()


async def _dismiss(machine: Machine, job_id: str) -> None:
    jobs = [job for job in await machine.door().ask(list[Job], "query-jobs") if job.id == job_id]
    machine.jobs.pop(job_id, None)
    for job in jobs:
        await machine.door().execute("job-dismiss", {"id": job_id})
        if job.error:
            raise MonitorFailed(f"QEMU could not do {job_id}: {job.error}", [Reason("qemu.job_failed", job.error)])


async def begin_from(machine: Machine, snapshot_id: str) -> MachineReport:
    """Load the snapshot and run on from its moment. :raise StateConflict: it has begun to run already."""
    report = await machine.refresh()
    if report.status is not MachineStatus.PAUSED:
        raise StateConflict.of(f"machine {machine.vm_id}", report.status.value, ("stopped",), "revert")
    await load(machine, snapshot_id)
    await machine.door().execute("cont")
    return await machine.refresh()
