"""What a VM would need elsewhere, as its record stands: what the rescuer and the forecast of one node's loss go by."""

from __future__ import annotations

import msgspec

from novacron.control.ha.takeover import Claim, protection_of
from novacron.control.migrations.decide import has_belongings
from novacron.control.scheduler.snapshot import PoolNeed
from novacron.control.store.kinds import NODES, POOLS
from novacron.control.store.records import Records
from novacron.control.vms.placing import need_of
from novacron.model.vm import Vm, running_spec


def claim_of(records: Records, vm: Vm, pool_id: str) -> Claim:
    """pool_id: the default pool's. Of a VM that is not recorded yet: its disks are made where it is."""
    need = need_of(records, vm, pool_id)
    pools = tuple(_settled(records, one, vm.node_id) for one in need.pools)
    need = msgspec.structs.replace(need, not_nodes=(vm.node_id,), pools=pools)
    if has_belongings(running_spec(vm)):  # they lie in its node's default pool: elsewhere it would begin without
        node = records.get(NODES, vm.node_id)
        own = node.record.facts.pool_ids if node is not None and node.record.facts is not None else ()
        need = msgspec.structs.replace(need, pool_id=own[0] if own else pool_id)
    return Claim(vm=vm, protection=protection_of(vm), need=need)


def _settled(records: Records, need: PoolNeed, node_id: str) -> PoolNeed:
    """A disk in a pool that nodes do not share lies on its VM's node, also while it is not made yet."""
    pool = records.get(POOLS, need.id)
    unsettled = not need.node_id and pool is not None and not pool.record.shared
    return msgspec.structs.replace(need, node_id=node_id) if unsettled else need
