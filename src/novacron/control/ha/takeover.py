"""What becomes of the VMs of a fenced node: which may be restarted elsewhere, in which order, where, as what record.

Written together: a VM's record as read, the fenced node's unchanged, the migration that held it FAILED (R5, R12).
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence

import msgspec

from novacron.control.bulk_migrations.loss import Lost, Restart, restarts
from novacron.control.scheduler.snapshot import Candidate, Limits, Need
from novacron.errors import Reason
from novacron.model.ha import HaPolicy, Proof, Protection, is_guarded
from novacron.model.machine import ENDED
from novacron.model.membership import Membership, MemberState
from novacron.model.migration import Migration, MigrationState, is_final
from novacron.model.vm import Problem, Task, TaskKind, Vm, is_wanted, running_protection, status_of


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A VM with what HA knows of it. need: of any node; where its disks lie is part of it."""

    vm: Vm
    protection: Protection
    need: Need


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """restarts: in the order in which they are to begin; those without a target say why. held: who stays, and why."""

    restarts: tuple[Restart, ...] = ()
    held: tuple[Reason, ...] = ()


def is_worth(protection: Protection, member: Membership, *, provable: bool = False) -> bool:
    """Whether to fence the node would let this VM be restarted elsewhere. provable: its power can be seen to be off."""
    return is_guarded(protection, member.fence_class) or (provable and protection.policy is not HaPolicy.NONE)


def refusal(claim: Claim, member: Membership) -> Reason | None:
    """Why the VM must not be started elsewhere, or None. member: of its node."""
    vm, protection = claim.vm, claim.protection
    if member.state is not MemberState.FENCED or vm.node_id != member.id:
        return Reason("ha.not_fenced", "its node is not fenced", subject=vm.name)
    if protection.policy is HaPolicy.NONE and not member.all_vms:
        remedy = f"look whether it is off; then: novacron node confirm-off {member.id} --with-unprotected"
        return Reason("ha.none", "it is not to be restarted elsewhere", subject=vm.name, remedy=remedy)
    if member.proof is Proof.NONE and not is_guarded(protection, member.fence_class):
        has, wants = member.fence_class.name.lower(), protection.min_class.name.lower()
        message = f"cannot guarantee that it ended: its node's fence class is {has}, it asks for {wants}"
        remedy = f"make sure that it is off; then: novacron node confirm-off {member.id}"
        return Reason("ha.cannot_guarantee", message, subject=vm.name, remedy=remedy)
    return None


def plan(member: Membership, claims: Collection[Claim], candidates: Sequence[Candidate], room: Limits) -> Plan:
    """For the VMs of a fenced node that are to run. candidates: nodes that may be given more, with what they carry."""
    free, held = admitted(member, claims)
    lost = [Lost(vm_id=one.vm.id, vm_name=one.vm.name, priority=one.protection.priority, need=one.need) for one in free]
    others = [one for one in candidates if one.node.id != member.id]
    return Plan(restarts=restarts(lost, others, room), held=tuple(reason for _, reason in held))


def admitted(
    member: Membership, claims: Collection[Claim]
) -> tuple[tuple[Claim, ...], tuple[tuple[Claim, Reason], ...]]:
    """Of the VMs of a fenced node that are to run: those that may be restarted elsewhere, in the order in which they
    are, and the others with why not.
    """
    mine = [one for one in claims if one.vm.node_id == member.id and is_wanted(one.vm)]
    reasons = [(one, refusal(one, member)) for one in mine]
    free = [one for one, reason in reasons if reason is None]
    free.sort(key=lambda one: (-one.protection.priority, -one.need.memory_mib, one.vm.name))
    return tuple(free), tuple((one, reason) for one, reason in reasons if reason is not None)


def protection_of(vm: Vm) -> Protection:
    """What holds for a VM this moment: what it wishes, but only where its machine was started with a deadline by it.

    booted is written before a machine is ordered to start, so nothing that runs was started with less.
    """
    wished, runs = vm.spec.ha, running_protection(vm)
    if runs.policy is HaPolicy.NONE:
        return msgspec.structs.replace(wished, policy=HaPolicy.NONE)
    return msgspec.structs.replace(wished, min_class=max(wished.min_class, runs.min_class))


def taken_over(vm: Vm, member: Membership, target_id: str, task_id: str, now: datetime.datetime) -> Vm:
    """The VM's record as its new owner's, to be started there. Nothing of the old owner's copy is believed any more."""
    task = Task(id=task_id, kind=TaskKind.START, requested_at=now, requested_by=f"ha: {member.reason}")
    return msgspec.structs.replace(
        vm,
        node_id=target_id,
        generation=vm.generation + 1,
        migration_id="",
        node_lost=False,
        observed=None,
        task=task,
        problem=None,
        updated_at=now,
    )


def cut_short(migration: Migration, member: Membership, now: datetime.datetime) -> Migration:
    """The migration that held the VM, ended in the same transaction: whoever conducts it must not go on."""
    if is_final(migration):
        return migration
    problem = Problem(
        code="ha.taken_over",
        message=f"node {member.id} was fenced: {member.reason}; the VM was started elsewhere",
        remedy=f"novacron vm show {migration.vm_name}",
        at=now,
    )
    return msgspec.structs.replace(
        migration, state=MigrationState.FAILED, problem=problem, updated_at=now, finished_at=now
    )


def restart_here(vm: Vm, protection: Protection, member: Membership, task_id: str, now: datetime.datetime) -> Vm | None:
    """The record of a VM that ended with its node, or at its deadline there, and is to be started again where it is;
    None: nothing of the kind. member: of its node, which is up again.
    """
    idle = vm.task is None and not vm.migration_id and is_wanted(vm)
    if protection.policy is HaPolicy.NONE or member.state is not MemberState.UP or vm.node_id != member.id:
        return None
    if not idle or vm.observed is None or status_of(vm) not in ENDED:
        return None
    task = Task(id=task_id, kind=TaskKind.START, requested_at=now, requested_by="ha: its node is back")
    return msgspec.structs.replace(vm, task=task, problem=None, updated_at=now)
