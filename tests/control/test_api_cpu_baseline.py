"""The CPU baseline: the newest model all nodes run, and the VMs that only some of them could take."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.nodes.baseline import NEWEST_FIRST, newest
from novacron.control.store.kinds import NODES
from novacron.model.machine import MachineStatus
from novacron.model.node import Accelerator, Node
from novacron.model.vm import Pins
from novacron.wire.rest.nodes import CpuBaseline
from tests.control.api import Api, fields_of, problem_of


@pytest.mark.parametrize(
    ("models", "best"),
    [
        (("qemu64", "Nehalem", "Haswell-noTSX"), "Haswell-noTSX"),
        (("Haswell-noTSX", "Haswell", "Haswell-v4"), "Haswell"),
        (("EPYC", "EPYC-Rome-v2", "EPYC-Rome"), "EPYC-Rome"),
        (("EPYC-v4", "qemu64"), "EPYC-v4"),
        (("486", "pentium"), None),
        ((), None),
    ],
)
def test_the_newest_model(models: tuple[str, ...], best: str | None) -> None:
    assert newest(models) == best


@given(st.sets(st.sampled_from(NEWEST_FIRST), min_size=1))
def test_the_newest_is_the_first_of_the_order(models: set[str]) -> None:
    assert newest(models) == next(model for model in NEWEST_FIRST if model in models)


async def _node(api: Api, name: str, models: tuple[str, ...], flags: tuple[str, ...] = (), **driver: Any) -> Node:
    node = await api.node(name)

    def given(old: Node) -> Node:
        assert old.facts is not None
        changed = msgspec.structs.replace(old.facts.drivers[0], cpu_models=models, **driver)
        return msgspec.structs.replace(
            old, facts=msgspec.structs.replace(old.facts, drivers=(changed,), cpu_flags=flags)
        )

    await api.records.change(NODES, node.id, given)
    return node


async def _ask(api: Api, **query: Any) -> CpuBaseline:
    answer = await api.http.get("/api/v1/cpu-baseline", params=query)
    assert answer.status_code == 200, answer.text
    return CpuBaseline.model_validate_json(answer.content)


@pytest.mark.anyio
async def test_what_all_nodes_run_and_who_is_bound(api: Api) -> None:
    new = await _node(api, "node-1", ("Haswell", "Nehalem", "qemu64"), ("avx2", "sse2"))
    await _node(api, "node-2", ("Nehalem", "qemu64"), ("sse2",))
    await _node(api, "node-3", ("Haswell", "Nehalem"), ("sse2",), machine_types=("pc-q35-7.2", "pc-q35-8.0"))
    await api.node("node-4", facts=None)
    await api.vm(
        "free", node=new, status=MachineStatus.RUNNING, pins=Pins(machine_type="pc-q35-7.2", cpu_model="Nehalem")
    )
    await api.vm("bound", node=new, status=MachineStatus.RUNNING, pins=Pins(cpu_model="Haswell"))
    await api.vm("locked", node=new, pins=Pins(machine_type="pc-q35-9.9", cpu_model="qemu64"))
    await api.vm("fresh", pins=Pins())
    found = await _ask(api)
    (only,) = found.baselines
    assert (only.accelerator, only.nodes, only.cpu_model) == ("tcg", ["node-1", "node-2", "node-3"], "Nehalem")
    assert (only.cpu_models, only.cpu_flags, only.machine_types) == (["Nehalem"], ["sse2"], ["pc-q35-7.2"])
    assert only.lacks_flags == {"node-2": ["avx2"], "node-3": ["avx2"]}
    assert found.unknown == ["node-4"]
    assert [(vm.vm, vm.is_locked_in, vm.could) for vm in found.vms] == [
        ("locked", True, []), ("bound", False, ["node-3"]),
    ]  # fmt: skip
    assert [(one.subject, one.code) for one in found.vms[1].cannot] == [("node-2", "cpu_model.missing")]


@pytest.mark.anyio
async def test_what_would_be_left_without_a_node(api: Api) -> None:
    new = await _node(api, "node-1", ("Haswell", "qemu64"))
    await _node(api, "node-2", ("qemu64",))
    await _node(api, "node-3", ("Haswell", "qemu64"))
    await api.vm("bound", node=new, status=MachineStatus.RUNNING, pins=Pins(cpu_model="Haswell"))
    assert [vm.is_locked_in for vm in (await _ask(api)).vms] == [False]
    left = await _ask(api, without="node-3")
    assert [(vm.vm, vm.node, vm.is_locked_in) for vm in left.vms] == [("bound", "node-1", True)]
    assert (await _ask(api, without="node-2")).baselines[0].cpu_model == "Haswell"
    answer = await api.http.get("/api/v1/cpu-baseline?without=nowhere")
    assert fields_of(problem_of(answer, 422, "invalid_input")) == ["without"]


@pytest.mark.anyio
async def test_accelerators_are_told_apart(api: Api) -> None:
    await _node(api, "node-1", ("Haswell",), accelerator=Accelerator(name="kvm", reason="probed"))
    tcg = await _node(api, "node-2", ("Nehalem",))
    await api.vm("web-1", node=tcg, status=MachineStatus.RUNNING, pins=Pins(cpu_model="Nehalem"))
    found = await _ask(api)
    assert [(one.accelerator, one.cpu_model) for one in found.baselines] == [("kvm", "Haswell"), ("tcg", "Nehalem")]
    assert found.vms[0].is_locked_in
