"""Placement decides from a snapshot and says why."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.control.scheduler.placement import Candidate, Limits, Need, choose
from novacron.control.scheduler.snapshot import PoolNeed
from novacron.model.node import Accelerator, DriverFacts, Node, NodeFacts, NodeState

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
QEMU = DriverFacts(
    name="qemu",
    version="7.2",
    features=("return-path",),
    machine_types=("pc-q35-7.2",),
    default_machine_types={"q35": "pc-q35-7.2"},
    cpu_models=("Nehalem",),
    accelerator=Accelerator(name="tcg", reason="no /dev/kvm"),
)
FACTS = NodeFacts(
    hostname="h",
    kernel="6.1",
    architecture="x86_64",
    boot_id="b",
    cpu_model="c",
    cpu_flags=(),
    cpu_count=2,
    memory_mib=4096,
    agent_version="0",
    pool_ids=("pool",),
    bridges=("br0",),
    drivers=(QEMU,),
)


def candidate(name: str = "a", *, committed_mib: int = 0, **change: object) -> Candidate:
    node = Node(
        id=f"id-{name}", name=name, state=NodeState.UP, created_at=NOW, updated_at=NOW, state_since=NOW, facts=FACTS
    )
    return Candidate(node=msgspec.structs.replace(node, **change), committed_memory_mib=committed_mib)


NEED = Need(memory_mib=512, vcpus=1)


def test_the_emptier_node_is_chosen() -> None:
    placement = choose(NEED, [candidate("a", committed_mib=2000), candidate("b")])
    assert placement.node_id == "id-b"
    assert placement.scores[0].total > placement.scores[1].total


def test_equal_nodes_answer_the_same_in_any_order() -> None:
    nodes = [candidate("b"), candidate("a")]
    assert choose(NEED, nodes).node_id == choose(NEED, nodes[::-1]).node_id == "id-a"


@pytest.mark.parametrize(
    ("pools", "node_id", "code"),
    [
        ({"p": ""}, "", None),
        ({"p": ""}, "id-a", None),
        ({"p": ""}, "id-b", "pool.elsewhere"),
        ({"p": "the disk is not mounted"}, "", "pool.unreachable"),
        ({}, "", "pool.unknown"),
    ],
)
def test_disks_are_placed_where_their_pools_are_reached(pools: dict[str, str], node_id: str, code: str | None) -> None:
    need = msgspec.structs.replace(NEED, pools=(PoolNeed(id="p", name="fast", node_id=node_id),))
    seen = msgspec.structs.replace(candidate(), pools=pools)
    placement = choose(need, [seen])
    assert [reason.code for reason in placement.refusals] == ([code] if code else [])
    if code == "pool.unreachable":
        assert "the disk is not mounted" in placement.refusals[0].message


@pytest.mark.parametrize(
    ("need", "node", "code"),
    [
        (Need(memory_mib=4000, vcpus=1), candidate(), "memory.short"),
        (Need(memory_mib=512, vcpus=9), candidate(), "vcpus.short"),
        (NEED, candidate(cordoned=True), "node.cordoned"),
        (NEED, candidate(state=NodeState.SUSPECT), "node.not_up"),
        (NEED, candidate(facts=None), "node.unknown"),
        (NEED, candidate(facts=msgspec.structs.replace(FACTS, drivers=())), "driver.missing"),
        (Need(memory_mib=512, vcpus=1, features=("postcopy",)), candidate(), "driver.feature_missing"),
        (Need(memory_mib=512, vcpus=1, machine_type="pc-q35-9.0"), candidate(), "machine_type.missing"),
        (Need(memory_mib=512, vcpus=1, cpu_model="Haswell"), candidate(), "cpu_model.missing"),
        (Need(memory_mib=512, vcpus=1, accelerator="kvm"), candidate(), "accelerator.differs"),
        (Need(memory_mib=512, vcpus=1, pool_id="other"), candidate(), "pool.not_shared"),
        (Need(memory_mib=512, vcpus=1, bridges=("br9",)), candidate(), "bridge.missing"),
        (Need(memory_mib=512, vcpus=1, node_id="id-z"), candidate(), "node.not_asked_for"),
        (Need(memory_mib=512, vcpus=1, not_nodes=("id-a",)), candidate(), "node.excluded"),
    ],
)
def test_each_refusal_says_why(need: Need, node: Candidate, code: str) -> None:
    placement = choose(need, [node])
    assert placement.node_id is None
    assert [reason.code for reason in placement.refusals] == [code]
    assert placement.refusals[0].subject == "a"


def test_limits_are_kept() -> None:
    node = candidate(committed_mib=3584 - 512)
    assert choose(NEED, [node]).node_id == "id-a"
    assert choose(NEED, [node], Limits(memory_reserve_mib=513)).node_id is None
