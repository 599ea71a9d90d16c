"""What comes next of a bulk migration: what has ended, which VMs may begin now, which wait and why. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from novacron.control.bulk_migrations.admission import Carried
from novacron.control.scheduler.placement import Candidate, Limits, Need, refusal
from novacron.control.scheduler.snapshot import promised
from novacron.errors import Reason
from novacron.model.bulk_migration import (
    BulkMigration,
    BulkState,
    Entry,
    EntryState,
    blocked,
    failed_once,
    finished,
    settled,
    with_entries,
)
from novacron.model.migration import Migration, MigrationState, is_final
from novacron.model.vm import Desired, Vm

SHORT = ("memory.short", "vcpus.short")
"""Refusals that pass when other moves have ended."""


def carried_of(bulk: BulkMigration, migrations: Mapping[str, Migration]) -> Carried:
    """What is under way in the cluster, whoever began it. migrations: by id, those that have not ended."""
    moving = [one for one in migrations.values() if not one.at_rest]
    own = {one.migration_ids[-1] for one in bulk.entries if one.state is EntryState.MOVING and one.migration_ids}
    mine = sum(one.id in own for one in moving)
    return Carried(((one.source_node, one.target_node) for one in moving), mine)


def taken_in(
    bulk: BulkMigration, vms: Mapping[str, Vm], migrations: Mapping[str, Migration], now: datetime.datetime
) -> BulkMigration:
    """The record after what has happened since it was written. migrations: by id, at least the bulk migration's own."""
    changed: dict[str, Entry] = {}
    for entry in bulk.entries:
        if entry.state is EntryState.MOVING:
            changed[entry.vm_id] = _moved(bulk, entry, migrations.get(entry.migration_ids[-1]), now)
        elif entry.state is EntryState.WAITING:
            changed[entry.vm_id] = _still_wanted(entry, vms.get(entry.vm_id), migrations, now)
    return finished(with_entries(bulk, changed, now), now)


def _moved(bulk: BulkMigration, entry: Entry, migration: Migration | None, now: datetime.datetime) -> Entry:
    if migration is None:
        return settled(entry, EntryState.FAILED, now, Reason("migration.gone", "its migration is not known any more"))
    if not is_final(migration):
        return entry
    if migration.state is MigrationState.COMPLETED:
        return settled(entry, EntryState.DONE, now)
    problem = migration.problem
    why = Reason(
        problem.code if problem else f"migration.{migration.state.value}",
        problem.message if problem else f"its migration ended {migration.state.value}",
        migration.id,
        problem.remedy if problem else f"novacron vm migrate {entry.vm_name}",
    )
    if bulk.state is BulkState.CANCELLING and migration.state is not MigrationState.FAILED:
        return settled(entry, EntryState.CANCELLED, now, why)
    if migration.state is MigrationState.ROLLED_BACK:
        return failed_once(bulk, entry, why, now)
    return settled(entry, EntryState.FAILED, now, why)


def _still_wanted(entry: Entry, vm: Vm | None, migrations: Mapping[str, Migration], now: datetime.datetime) -> Entry:
    if vm is None or vm.desired is Desired.DELETED:
        return settled(entry, EntryState.SKIPPED, now, Reason("vm.gone", "it was deleted", entry.vm_id))
    other = migrations.get(vm.migration_id)
    if vm.node_id != entry.source_node and (other is None or is_final(other)):
        return settled(entry, EntryState.SKIPPED, now, Reason("vm.elsewhere", "others have moved it", entry.vm_id))
    return entry


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """begin: VM ids with their targets, in order. held: entries that cannot begin, with why. replan: targets are to be
    chosen anew, for some have none or one that will not do.
    """

    begin: tuple[tuple[str, str], ...] = ()
    held: Mapping[str, Entry] = {}
    replan: bool = False


def turn(
    bulk: BulkMigration,
    vms: Mapping[str, Vm],
    needs: Mapping[str, Need],
    candidates: list[Candidate],
    room: Limits,
    carried: Carried,
    at_rest: frozenset[str],
    closed: Mapping[str, datetime.datetime],
    now: datetime.datetime,
) -> Turn:
    """What begins now. needs: by VM id, of those that wait; at_rest: VMs whose moves count for no limit; closed:
    by VM id, when the window opens that it waits for.
    """
    nodes = {one.node.id: one for one in candidates}
    begin: list[tuple[str, str]] = []
    held: dict[str, Entry] = {}
    short: list[str] = []
    replan = False
    for entry in sorted(bulk.entries, key=_order):
        vm = vms.get(entry.vm_id)
        if entry.state is not EntryState.WAITING or vm is None or (entry.retry_at and entry.retry_at > now):
            continue
        if entry.vm_id in closed:
            held[entry.vm_id] = _until(entry, closed[entry.vm_id])
            continue
        if busy := _busy(vm):
            held[entry.vm_id] = blocked(entry, (busy,), now)
            continue
        target = nodes.get(entry.target_node)
        why = refusal(needs[entry.vm_id], target, room) if target else None
        if target is None or (why is not None and why.code not in SHORT):
            replan = True
        elif why is not None:
            short.append(entry.vm_id)
        elif vm.id in at_rest or carried.refusal(bulk.limits, entry.source_node, target.node.id) is None:
            begin.append((entry.vm_id, target.node.id))
            nodes[target.node.id] = promised(target, needs[entry.vm_id])
            if vm.id not in at_rest:
                carried.begin(entry.source_node, target.node.id)
    moving = begin or any(entry.state is EntryState.MOVING for entry in bulk.entries)
    return Turn(begin=tuple(begin), held=held, replan=replan or (bool(short) and not moving))


def _order(entry: Entry) -> tuple[float, int, str]:
    return (entry.starts_at_s, -entry.priority, entry.vm_name)


def _until(entry: Entry, opens_at: datetime.datetime) -> Entry:
    """The entry until its window opens; that may take as long as it takes."""
    why = Reason("window.closed", f"its window opens at {opens_at:%Y-%m-%d %H:%M} UTC", "", "wait, or ask with now")
    return msgspec.structs.replace(entry, reasons=(why,), blocked_since=None, retry_at=opens_at)


def _busy(vm: Vm) -> Reason | None:
    if vm.migration_id:
        return Reason("vm.migrating", "it is being moved by others", vm.migration_id, "wait until it has ended")
    if vm.task is not None:
        return Reason("vm.task_under_way", f"its task {vm.task.kind.value} is under way", vm.task.id, "wait for it")
    return None


def replanned(bulk: BulkMigration, fresh: Mapping[str, Entry], now: datetime.datetime) -> BulkMigration:
    """The record with the targets of a new plan, where an entry still waits. What finds no place is blocked."""
    changed: dict[str, Entry] = {}
    retargeted = 0
    for entry in bulk.entries:
        new = fresh.get(entry.vm_id)
        if entry.state is not EntryState.WAITING or new is None:
            continue
        if not new.target_node:
            kept = msgspec.structs.replace(entry, target_node="", wave=0)
            changed[entry.vm_id] = blocked(kept, new.reasons, now)
            continue
        retargeted += new.target_node != entry.target_node
        changed[entry.vm_id] = msgspec.structs.replace(
            entry,
            target_node=new.target_node,
            wave=new.wave,
            starts_at_s=new.starts_at_s,
            takes_s=new.takes_s,
            blocked_since=None,
        )
    made = with_entries(bulk, changed, now)
    return msgspec.structs.replace(made, replans=made.replans + 1) if retargeted else made
