"""What a volume needs next, and which node does it: pure functions over records."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import msgspec

from novacron.errors import NovaCronError
from novacron.model.machine import ENDED
from novacron.model.node import Node, NodeState
from novacron.model.pool import Pool, is_own
from novacron.model.vm import Problem, Vm, is_broken, running_spec, status_of
from novacron.model.volume import Volume, VolumeTask


class Make(msgspec.Struct, frozen=True):
    """Have it made: empty, from its image, or from the volume it is a clone of."""


class Grow(msgspec.Struct, frozen=True):
    """Have it grown where it lies: no machine has it open."""


class Delete(msgspec.Struct, frozen=True):
    """Have it deleted, then its record."""


class Settle(msgspec.Struct, frozen=True):
    """What was asked for is so: its machine has grown it."""


class Release(msgspec.Struct, frozen=True):
    """Its VM has let go of it."""


Step = Make | Grow | Delete | Settle | Release


def next_step(volume: Volume, vm: Vm | None) -> Step | None:
    """What brings it nearer to what was asked; None: nothing to do, or not now. vm: the one it is attached to."""
    match volume.task:
        case VolumeTask.DELETE:
            return Delete()
        case VolumeTask.CREATE | VolumeTask.CLONE:
            return Make()
        case VolumeTask.GROW:
            return _growth(volume, vm)
        case None:
            return Release() if volume.vm_id and is_released(volume, vm) else None


def _growth(volume: Volume, vm: Vm | None) -> Step | None:
    """A machine that runs grows its disks itself. While it is not running it cannot start before this is done."""
    if vm is None:
        return Grow()
    if vm.migration_id:
        return None
    if status_of(vm) in ENDED:
        return Grow()
    sizes = [disk.size_bytes for disk in running_spec(vm).disks if disk.volume_id == volume.id]
    return Settle() if sizes and sizes[0] >= volume.size_bytes else None


def is_released(volume: Volume, vm: Vm | None) -> bool:
    """Whether no machine of its VM has it open or is to have it.

    While work is under way on the VM, or has failed, its machine may have open what no record says.
    """
    if vm is None:
        return True
    if any(disk.volume_id == volume.id for disk in vm.spec.disks) or vm.task is not None or vm.migration_id:
        return False
    if status_of(vm) in ENDED:
        return True
    return not is_broken(vm) and all(disk.volume_id != volume.id for disk in running_spec(vm).disks)


def is_quiet(vm: Vm | None) -> bool:
    """Whether a volume of this VM (or of none) is there, and no machine has it open."""
    if vm is None:
        return True
    return vm.observed is not None and status_of(vm) in ENDED and vm.task is None and not vm.migration_id


def doers(volume: Volume, vm: Vm | None, pool: Pool, nodes: Iterable[Node]) -> list[str]:
    """Ids of the nodes that can work on it, best first: where it lies, else where its VM is, else any that reach it."""
    if volume.node_id:
        return [volume.node_id]
    able = [node for node in nodes if node.state is NodeState.UP and reaches(node, pool)]
    able.sort(key=lambda node: (vm is None or node.id != vm.node_id, node.name))
    return [node.id for node in able]


def reaches(node: Node, pool: Pool) -> bool:
    """Whether a node can get at what lies in the pool, as far as is known."""
    if is_own(pool):
        return node.facts is not None and pool.id in node.facts.pool_ids
    found = pool.reach.get(node.id)
    return found is not None and found.available


def done(volume: Volume, task: VolumeTask, used_bytes: int, now: datetime.datetime) -> Volume | None:
    """The record after its task is done; None: it has another by now."""
    if volume.task is not task:
        return None
    return msgspec.structs.replace(volume, task=None, problem=None, used_bytes=used_bytes, updated_at=now)


def failed(volume: Volume, task: VolumeTask, error: NovaCronError, now: datetime.datetime) -> Volume | None:
    """The record after its task met a refusal: the task is over, the problem says why. None: it has another by now."""
    if volume.task is not task:
        return None
    reasons = "".join(f"; {reason.message}" for reason in error.reasons if reason.message not in error.message)
    remedy = next((reason.remedy for reason in error.reasons if reason.remedy), _REMEDIES[task].format(volume.name))
    problem = Problem(
        code=error.code, message=f"cannot {task.value} it: {error.message}{reasons}", remedy=remedy, at=now
    )
    return msgspec.structs.replace(volume, task=None, problem=problem, updated_at=now)


_REMEDIES = {
    VolumeTask.CREATE: "novacron volume delete {}, then make it again",
    VolumeTask.CLONE: "novacron volume delete {}, then make it again",
    VolumeTask.GROW: "ask for the size again: novacron volume grow {}",
    VolumeTask.DELETE: "ask again: novacron volume delete {}",
}
