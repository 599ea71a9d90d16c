"""What orders to a node speak for: the epoch of its membership, read together with the record of what is ordered."""

from __future__ import annotations

from novacron.control.store.kinds import MEMBERS, MIGRATIONS
from novacron.control.store.records import Records
from novacron.errors import NodeUnreachable
from novacron.model.membership import MemberState
from novacron.model.migration import is_final


def epoch_of(records: Records, node_id: str) -> int:
    """The epoch of a node that is up; 0: it takes no part in memberships, as agents of older versions.

    Read it in the same step of the event loop as the VM's record: an order speaks for both as of one moment.

    :raise NodeUnreachable: its epoch is barred, so nothing may be started there until it has joined again.
    """
    stored = records.get(MEMBERS, node_id)
    if stored is None:
        return 0
    if stored.record.state is not MemberState.UP:
        raise NodeUnreachable(f"node {node_id} is {stored.record.state}: {stored.record.reason}")
    return stored.record.epoch


def last_ended(records: Records, vm_id: str) -> str:
    """The id of the VM's last migration, if it has ended; else none. What it left on a node may be started there."""
    migrations = records.of_vm(MIGRATIONS, vm_id)
    return migrations[-1].record.id if migrations and is_final(migrations[-1].record) else ""
