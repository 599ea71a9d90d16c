"""Which VMs a request for a bulk migration means, as entries still to be planned. Pure reading of the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from novacron.control.named import named
from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import Records
from novacron.errors import InvalidInput, Reason, StateConflict
from novacron.model.bulk_migration import (
    MAX_VMS,
    BulkMigration,
    Entry,
    EntryState,
    Purpose,
    Selection,
    is_bulk_final,
    priority_of,
)
from novacron.model.migration import is_final
from novacron.model.vm import Desired, Vm
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate

WAYS = ("vms", "selector", "drain", "bring_back")


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What was selected. target_id: where all of them go; empty: wherever the scheduler says."""

    purpose: Purpose
    selection: Selection
    entries: tuple[Entry, ...]
    target_id: str = ""


def chosen(records: Records, asked: BulkMigrationCreate) -> Chosen:
    """The VMs that are meant.

    :raise InvalidInput: not just one way to select, no such VM or node, none selected, or too many.
    :raise StateConflict: the node is being drained, or there is nothing to bring back.
    """
    said = [way for way in WAYS if getattr(asked, way)]
    if len(said) != 1:
        raise InvalidInput.field(said[1] if said else "vms", "does not say which VMs", f"give one of {', '.join(WAYS)}")
    if asked.target_node and asked.bring_back:
        raise InvalidInput.field("target_node", "does not go with bring_back", "leave it out: they go back")
    if asked.bring_back:
        found = _brought_back(records, asked.bring_back)
    elif asked.drain:
        found = _on_node(records, asked.drain)
    else:
        found = _picked(records, asked)
    if len(found.entries) > MAX_VMS:
        raise InvalidInput.field(said[0], f"selects {len(found.entries)} VMs", f"select up to {MAX_VMS} at a time")
    return msgspec.structs.replace(found, entries=_with_wishes(records, asked, found))


def _picked(records: Records, asked: BulkMigrationCreate) -> Chosen:
    target = named(records, NODES, asked.target_node, "target_node").record.id if asked.target_node else ""
    if asked.vms:
        vms = list({ref.id: ref for ref in (named(records, VMS, ref, "vms").record for ref in asked.vms)}.values())
        selection = Selection(vm_ids=tuple(vm.id for vm in vms))
    else:
        vms = [stored.record for stored in records.all(VMS) if _fits(asked.selector, stored.record)]
        selection = Selection(selector=asked.selector)
        if not vms:
            raise InvalidInput.field("selector", "selects no VM", "novacron vm list -l KEY=VALUE shows whom")
    return Chosen(purpose=Purpose.MOVE, selection=selection, entries=_entries(vms), target_id=target)


def _fits(selector: Mapping[str, str], vm: Vm) -> bool:
    if vm.desired is Desired.DELETED:
        return False
    return all(key in vm.labels and value in ("", vm.labels[key]) for key, value in selector.items())


def _on_node(records: Records, ref: str) -> Chosen:
    """Every VM of the node, and those that are on their way to it."""
    node = named(records, NODES, ref, "drain").record
    for stored in records.all(BULK_MIGRATIONS):
        bulk = stored.record
        if bulk.purpose is Purpose.DRAIN and bulk.selection.node_id == node.id and not is_bulk_final(bulk):
            raise StateConflict(
                f"cannot drain node {node.name}: bulk migration {bulk.id} drains it already",
                [Reason("node.draining", "it is being drained", bulk.id, f"novacron bulk-migration watch {bulk.id}")],
            )
    coming = {
        stored.record.vm_id
        for stored in records.all(MIGRATIONS)
        if stored.record.target_node == node.id and stored.record.holds and not is_final(stored.record)
    }
    vms = [stored.record for stored in records.all(VMS)]
    mine = [vm for vm in vms if (vm.node_id == node.id or vm.id in coming) and vm.desired is not Desired.DELETED]
    entries = tuple(msgspec.structs.replace(one, source_node=node.id) for one in _entries(mine))
    return Chosen(purpose=Purpose.DRAIN, selection=Selection(node_id=node.id), entries=entries)


def _brought_back(records: Records, ref: str) -> Chosen:
    """What drains have taken away from the node since it was last brought back, as far as it is where they put it."""
    node = named(records, NODES, ref, "bring_back").record
    away: dict[str, Entry] = {}
    for stored in records.all(BULK_MIGRATIONS):
        bulk = stored.record
        if bulk.selection.node_id != node.id:
            continue
        if not is_bulk_final(bulk):
            raise StateConflict(
                f"cannot bring back node {node.name}: bulk migration {bulk.id} is under way",
                [Reason("bulk.under_way", bulk.state.value, bulk.id, f"novacron bulk-migration cancel {bulk.id}")],
            )
        away = taken_away(away, bulk)
    entries = []
    for vm_id, drained in away.items():
        there = records.get(VMS, vm_id)
        if there is None or there.record.desired is Desired.DELETED:
            continue
        vm = there.record
        moved = vm.node_id != drained.target_node
        why = (Reason("vm.elsewhere", "others have moved it since", vm.id, f"novacron vm migrate {vm.name}"),)
        entry = Entry(vm_id=vm.id, vm_name=vm.name, source_node=vm.node_id, priority=priority_of(vm.labels))
        entries.append(msgspec.structs.replace(entry, state=EntryState.SKIPPED, reasons=why) if moved else entry)
    selection = Selection(node_id=node.id)
    return Chosen(purpose=Purpose.BRING_BACK, selection=selection, entries=tuple(entries), target_id=node.id)


def taken_away(before: Mapping[str, Entry], bulk: BulkMigration) -> dict[str, Entry]:
    """By VM id what is away from the node of a drain or a return, after it. before: the same before it."""
    done = {entry.vm_id: entry for entry in bulk.entries if entry.state is EntryState.DONE}
    if bulk.purpose is Purpose.DRAIN:
        return {**before, **done}
    return {vm_id: entry for vm_id, entry in before.items() if vm_id not in done}


def _entries(vms: Iterable[Vm]) -> tuple[Entry, ...]:
    return tuple(
        Entry(vm_id=vm.id, vm_name=vm.name, source_node=vm.node_id, priority=priority_of(vm.labels)) for vm in vms
    )


def _with_wishes(records: Records, asked: BulkMigrationCreate, found: Chosen) -> tuple[Entry, ...]:
    """The entries with what the request says of single VMs; those that are there already are skipped."""
    mine = {entry.vm_id for entry in found.entries}
    changed: dict[str, dict[str, object]] = {}
    for field, said in (("priorities", asked.priorities), ("targets", asked.targets)):
        for ref, value in said.items():
            vm = named(records, VMS, ref, field).record
            if vm.id not in mine:
                raise InvalidInput.field(field, f"{ref} is not among the VMs selected", "leave it out, or select it")
            if field == "priorities":
                changed.setdefault(vm.id, {})["priority"] = value
            else:
                changed.setdefault(vm.id, {})["target_node"] = named(records, NODES, str(value), field).record.id
    entries = (msgspec.structs.replace(entry, **changed.get(entry.vm_id, {})) for entry in found.entries)
    return tuple(_there(entry) if entry.source_node == found.target_id else entry for entry in entries)


def _there(entry: Entry) -> Entry:
    reason = Reason("vm.is_there", "it is there already", entry.vm_id)
    return msgspec.structs.replace(entry, state=EntryState.SKIPPED, reasons=(reason,))
