"""The CPU baseline after changes: who could go where now and then, who is locked in; bad changes are told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.control.store.kinds import VMS
from novacron.model.cpu_models import flags_needed, models_run
from novacron.model.machine import MachineStatus
from novacron.model.node import Accelerator
from novacron.model.vm import Pins
from novacron.wire.rest.nodes import CpuBaselinePlan
from tests.control.api import Api, fields_of, problem_of
from tests.control.test_api_cpu_baseline import _node as node

KVM = Accelerator(name="kvm", reason="probed")
HASWELL, ICELAKE = ("Haswell", "Nehalem"), ("Haswell", "Icelake-Server", "Nehalem")


@pytest.mark.parametrize(
    ("hardware", "model", "runs"),
    [
        ("Haswell", "Nehalem", True),
        ("Haswell", "Haswell-noTSX", True),
        ("Haswell", "Broadwell", False),
        ("Skylake-Server", "Haswell", True),
        ("EPYC", "Haswell", False),
        ("Icelake-Server", "Icelake-Server-noTSX", True),
    ],
)
def test_what_hardware_runs(hardware: str, model: str, runs: bool) -> None:
    assert (model in models_run(flags_needed(hardware) or ())) is runs


def test_flags_are_read_as_linux_and_as_qemu_write_them() -> None:
    linux = flags_needed("Westmere") or frozenset()
    assert "sse4_1" in linux
    assert "Westmere" in models_run({flag.replace("_", ".") for flag in linux})
    assert "Westmere-IBRS" in models_run({*linux, "ibrs"})
    assert "Westmere-IBRS" not in models_run(linux)


async def _plan(api: Api, **body: Any) -> CpuBaselinePlan:
    answer = await api.http.post("/api/v1/cpu-baseline-plans", json=body)
    assert answer.status_code == 200, answer.text
    return CpuBaselinePlan.model_validate_json(answer.content)


async def _vm(api: Api, name: str, host: Any, model: str = "Haswell", machine_type: str = "pc-q35-7.2") -> None:
    pins = Pins(cpu_model=model, machine_type=machine_type)
    vm = (await api.vm(name, node=host, status=MachineStatus.RUNNING, pins=pins)).record
    assert vm.observed is not None
    seen = msgspec.structs.replace(vm.observed, accelerator="kvm")
    await api.records.change(VMS, vm.id, lambda old: msgspec.structs.replace(old, observed=seen))


@pytest.mark.anyio
async def test_a_renewed_node_a_removed_one_and_a_new_one(api: Api) -> None:
    old = await node(api, "node-1", HASWELL, accelerator=KVM)
    await node(api, "node-2", HASWELL, accelerator=KVM)
    new = await node(api, "node-3", ICELAKE, accelerator=KVM)
    await _vm(api, "old", old)
    await _vm(api, "new", new, "Icelake-Server")
    await _vm(api, "any", old, "Nehalem")
    found = await _plan(api, nodes={"node-1": {"cpu_model": "EPYC"}, "node-2": {"gone": True}})
    told = {vm.vm: vm for vm in found.vms}
    assert set(told) == {"old", "new", "any"}
    assert (told["old"].could_now, told["old"].could, told["old"].can_stay) == (["node-2", "node-3"], ["node-3"], False)
    assert told["old"].remedy == "before the change: novacron vm migrate old --to node-3"
    assert [(one.subject, one.code) for one in told["old"].cannot] == [("node-1", "cpu_model.missing")]
    assert (told["new"].was_locked_in, told["new"].is_locked_in) == (True, True)
    assert told["new"].remedy == "add a node with Icelake-Server and pc-q35-7.2 and kvm"
    added = await _plan(api, nodes={"node-9": {"added": True, "cpu_model": "Icelake-Server"}})
    told = {vm.vm: vm for vm in added.vms}
    assert (told["new"].was_locked_in, told["new"].could, told["new"].remedy) == (True, ["node-9"], "")
    assert added.assumed == ["node-9 has the QEMU of node-1 (7.2, kvm)"]
    assert added.baselines[0].nodes == ["node-1", "node-2", "node-3", "node-9"]


@pytest.mark.anyio
async def test_who_can_leave_no_more_and_who_could_be_started_nowhere(api: Api) -> None:
    here = await node(api, "node-1", ICELAKE, accelerator=KVM, machine_types=("pc-q35-6.0", "pc-q35-7.2"))
    there = await node(api, "node-2", ICELAKE, accelerator=KVM, machine_types=("pc-q35-6.0", "pc-q35-7.2"))
    await _vm(api, "stays", here, "Icelake-Server")
    await _vm(api, "stuck", there, "Haswell", "pc-q35-6.0")
    await _vm(api, "free", there, "Nehalem")
    await _vm(api, "placed-nowhere", None, "Nehalem")
    less = {"remove_machine_types": ["pc-q35-6.0"]}
    found = await _plan(api, nodes={"node-2": {"remove_cpu_flags": ["avx512f"], **less}, "node-1": less})
    assert [vm.vm for vm in found.vms] == ["stuck", "stays"]  # the worse comes first
    stuck, stays = found.vms
    assert (stuck.can_stay, stuck.could, stuck.is_locked_in) == (False, [], True)
    assert stuck.remedy == "leave node-2 or node-1 as it is, or stuck can be started nowhere"
    assert (stays.can_stay, stays.was_locked_in, stays.is_locked_in) == (True, False, True)
    assert stays.remedy == "leave node-2 as it is, or stays can leave node-1 no more"
    assert found.vms_unchanged == 2
    one = await _plan(api, nodes={"node-2": {"qemu_version": "9.0", **less}})
    assert [(vm.vm, vm.can_stay, vm.could) for vm in one.vms] == [("stuck", False, ["node-1"])]
    assert (await _plan(api)).vms == []


@pytest.mark.anyio
async def test_vms_with_another_model_and_flags_of_new_hardware(api: Api) -> None:
    here = await node(api, "node-1", ICELAKE, accelerator=KVM)
    await node(api, "node-2", ("Nehalem",), accelerator=KVM)
    await _vm(api, "web-1", here)
    await _vm(api, "web-2", here)
    found = await _plan(api, every_vm="Nehalem", vms={"web-2": "Icelake-Server"})
    assert [(vm.vm, vm.could, vm.is_locked_in) for vm in found.vms] == [
        ("web-2", [], True), ("web-1", ["node-2"], False),
    ]  # fmt: skip
    flags = sorted(flags_needed("Haswell") or ())
    renewed = await _plan(api, nodes={"node-2": {"cpu_flags": flags}})
    assert [(vm.vm, vm.could) for vm in renewed.vms] == [("web-1", ["node-2"]), ("web-2", ["node-2"])]
    more = await _plan(api, nodes={"node-2": {"add_cpu_flags": flags}})
    assert [vm.could for vm in more.vms] == [["node-2"], ["node-2"]]


@pytest.mark.anyio
async def test_what_is_emulated_runs_the_same_on_any_hardware(api: Api) -> None:
    await node(api, "node-1", HASWELL)
    found = await _plan(api, nodes={"node-1": {"cpu_model": "EPYC"}})
    assert found.baselines[0].cpu_models == sorted(HASWELL)
    assert found.assumed == ["node-1 emulates its CPUs (tcg): what it runs does not depend on its hardware"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nodes": {"node-7": {"cpu_model": "Haswell"}}}, "nodes.node-7"),
        ({"nodes": {"node-1": {"cpu_model": "Hasswell"}}}, "nodes.node-1.cpu_model"),
        ({"nodes": {"node-1": {"gone": True, "cpu_model": "Haswell"}}}, "nodes.node-1.gone"),
        ({"nodes": {"node-1": {"added": True, "cpu_model": "Haswell"}}}, "nodes.node-1.added"),
        ({"nodes": {"node-9": {"added": True}}}, "nodes.node-9.cpu_model"),
        ({"nodes": {"node-1": {"cpu_model": "Haswell", "cpu_flags": ["sse2"]}}}, "nodes.node-1.cpu_flags"),
        ({"nodes": {"node-1": {"remove_cpu_flags": ["avx-512"]}}}, "nodes.node-1.remove_cpu_flags"),
        ({"nodes": {"node-1": {"remove_machine_types": ["pc-q35-1.0"]}}}, "nodes.node-1.remove_machine_types"),
        ({"nodes": {"node-1": {"qemu_version": "9.0"}}}, "nodes.node-1.qemu_version"),
        ({"vms": {"nobody": "Haswell"}}, "vms.nobody"),
        ({"every_vm": "Hasswell"}, "every_vm"),
    ],
)
async def test_changes_that_cannot_be_thought_through_name_their_field(api: Api, body: Any, field: str) -> None:
    await node(api, "node-1", HASWELL, accelerator=KVM)
    problem = problem_of(await api.http.post("/api/v1/cpu-baseline-plans", json=body), 422, "invalid_input")
    assert fields_of(problem) == [field]
    assert all(reason["remedy"] for reason in problem["reasons"])
