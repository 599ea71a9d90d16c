"""A silent node: suspect, then down, its VM unknown and left running; back again when it is heard."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.store.kinds import NODES
from novacron.model.node import NodeState
from novacron.model.vm import VmState
from tests.sim.house import house

pytestmark = pytest.mark.anyio


async def test_a_silent_node_is_judged_and_its_vm_is_not_guessed_at(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id, other_id = await h.running_vm("a"), await h.running_vm("b")
        node_id = h.cluster["a"].node_id

        def state() -> NodeState:
            return h.records.find(NODES, node_id).record.state

        await h.cluster.disconnect("a")
        await h.until(lambda: state() is NodeState.SUSPECT, "suspect")
        await h.until(lambda: h.state(vm_id) is VmState.UNKNOWN, "unknown")
        await h.until(lambda: state() is NodeState.DOWN, "down")
        assert h.cluster.world.running(vm_id) == ["a"]
        assert h.state(other_id) is VmState.RUNNING
        await h.cluster.connect("a")
        await h.until(lambda: state() is NodeState.UP and h.state(vm_id) is VmState.RUNNING, "back")
