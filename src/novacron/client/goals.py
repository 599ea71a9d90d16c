"""What is waited for: pure verdicts over one record as it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from novacron.client.images import Image
from novacron.client.migrations import Migration
from novacron.client.snapshots import Snapshot
from novacron.client.vms import Problem, Vm
from novacron.errors import NovaCronError, Reason, StateConflict, from_data

if TYPE_CHECKING:
    from novacron.client.bulk_migrations import BulkMigration
    from novacron.client.rehearsals import Rehearsal
    from novacron.client.volumes import Volume

T = TypeVar("T")

_STEADY = frozenset({"running", "paused", "stopped"})


class Goal(msgspec.Struct, Generic[T], frozen=True):
    """text: a word or two, as in "web-1 is not running after 60 s".

    `is_met` raises NovaCronError when the goal cannot be reached any more without somebody's help.
    """

    text: str
    is_met: Callable[[T], bool]


def vm_is(state: str) -> Goal[Vm]:
    """The VM is in that state, whoever brought it there. Refused at once by state `error`, unless that is wanted."""

    def is_met(vm: Vm) -> bool:
        if vm.state != state and vm.state == "error":
            raise trouble_of(vm.name, vm.problem)
        return vm.state == state

    return Goal(state, is_met)


def vm_settles(state: str) -> Goal[Vm]:
    """A verb that was just asked for has brought the VM to that state and nothing more is being done.

    Refused when the VM ends in error or the verb was refused, or when somebody asks for another state meanwhile.
    """
    reached = vm_is(state)
    wanted = "stopped" if state == "parked" else state  # it is off, and what it remembers is kept

    def is_met(vm: Vm) -> bool:
        if vm.task is not None:
            return False
        if vm.problem is not None and vm.problem.refused:
            raise trouble_of(vm.name, vm.problem)
        if vm.desired != wanted and vm.desired in _STEADY:
            raise StateConflict(
                f"{vm.name} will not be {state}: it is wanted {vm.desired} now",
                [Reason("state.wish_changed", "somebody asked for another state meanwhile", subject=vm.name)],
            )
        return reached.is_met(vm)

    return Goal(state, is_met)


def vm_is_gone() -> Goal[Vm]:
    """The VM has been deleted, which a record never shows; refused when the deletion fails."""

    def is_met(vm: Vm) -> bool:
        if vm.problem is not None and vm.task is None:
            raise trouble_of(vm.name, vm.problem)
        return False

    return Goal("gone", is_met)


def vm_fits(predicate: Callable[[Vm], bool], text: str) -> Goal[Vm]:
    """Any condition on a VM; `text` says it in a word or two."""
    return Goal(text, predicate)


def volume_settles() -> Goal[Volume]:
    """Nothing is being done with the volume any more. Refused when that failed."""

    def is_met(volume: Volume) -> bool:
        if volume.problem is not None:
            raise trouble_of(volume.name, volume.problem)
        return volume.task is None

    return Goal("settled", is_met)


def volume_is_free() -> Goal[Volume]:
    """No VM has the volume any more."""
    return Goal("free", lambda volume: volume.vm_id is None)


def volume_is_gone() -> Goal[Volume]:
    """The volume has been deleted, which a record never shows; refused when the deletion fails."""

    def is_met(volume: Volume) -> bool:
        if volume.problem is not None and volume.task is None:
            raise trouble_of(volume.name, volume.problem)
        return False

    return Goal("gone", is_met)


def migration_is_final() -> Goal[Migration]:
    """The migration has ended, well or not: its `state` and `problem` say how."""
    return Goal("at its end", lambda migration: migration.is_final)


def bulk_migration_is_final() -> Goal[BulkMigration]:
    """The bulk migration has ended, well or not: its `state` and its entries say how."""
    return Goal("at its end", lambda bulk: bulk.is_final)


def rehearsal_is_final() -> Goal[Rehearsal]:
    """The rehearsal has ended, well or not: its `state` and its verdict say how."""
    return Goal("at its end", lambda rehearsal: rehearsal.is_final)


def image_file_is_there(role: str) -> Goal[Image]:
    """The image has its file of that role and nothing is being done on it; refused when that failed."""

    def is_met(image: Image) -> bool:
        task = next((task for task in image.tasks if task.role == role), None)
        if task is not None and task.phase == "failed":
            raise trouble_of(image.name, task.problem)
        return task is None and any(file.role == role for file in image.files)

    return Goal("filled", is_met)


def snapshot_settles() -> Goal[Snapshot]:
    """What was just asked of the snapshot is done. Refused when it failed."""

    def is_met(snapshot: Snapshot) -> bool:
        if snapshot.state not in ("ready", "error"):
            return False
        if snapshot.problem is not None or snapshot.state == "error":
            raise trouble_of(snapshot.name, snapshot.problem)
        return True

    return Goal("ready", is_met)


def trouble_of(name: str, problem: Problem | None) -> NovaCronError:
    """A record's problem as the error it stands for."""
    if problem is None:
        return NovaCronError(f"{name} is in error")
    reason = {"code": problem.code, "message": problem.message, "subject": name, "remedy": problem.remedy}
    return from_data({"code": problem.code, "message": f"{name}: {problem.message}", "reasons": [reason]})
