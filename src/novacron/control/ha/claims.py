"""What a VM would need elsewhere, as its record stands: what the rescuer and the forecast of one node's loss go by."""

from __future__ import annotations

import msgspec

from novacron.control.ha.takeover import Claim, protection_of
from novacron.control.migrations.decide import has_belongings
from novacron.control.store.kinds import NODES
from novacron.control.store.records import Records
from novacron.control.vms.placing import need_of
from novacron.model.vm import Vm, running_spec


def claim_of(records: Records, vm: Vm, pool_id: str) -> Claim:
    """pool_id: the default pool's."""
    need = msgspec.structs.replace(need_of(records, vm, pool_id), not_nodes=(vm.node_id,))
    if has_belongings(running_spec(vm)):  # they lie in its node's default pool: elsewhere it would begin without
        node = records.get(NODES, vm.node_id)
        pools = node.record.facts.pool_ids if node is not None and node.record.facts is not None else ()
        need = msgspec.structs.replace(need, pool_id=pools[0] if pools else pool_id)
    return Claim(vm=vm, protection=protection_of(vm), need=need)
