"""What virtual CPU and machine all nodes run, and which VMs are bound to fewer nodes than that. Pure.

A VM keeps the CPU model and machine type of its first start. A node that does not have them cannot take it, so a
cluster whose nodes differ should pin what all of them run; before one is taken away or renewed, ask what would be left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from novacron.control.scheduler.filters import compatible
from novacron.control.scheduler.snapshot import Candidate, Limits, Need
from novacron.errors import Reason
from novacron.model.node import DriverFacts, Node
from novacron.model.vm import Vm

NEWEST_FIRST = (
    *("SapphireRapids", "EPYC-Genoa", "Icelake-Server", "EPYC-Milan", "Cooperlake", "Cascadelake-Server", "EPYC-Rome"),
    *("Skylake-Server", "Skylake-Client", "EPYC", "Broadwell", "Haswell", "Opteron_G5", "Opteron_G4", "IvyBridge"),
    *("SandyBridge", "Westmere", "Opteron_G3", "Nehalem", "Opteron_G2", "Penryn", "Conroe", "Opteron_G1", "kvm64"),
    *("qemu64", "qemu32"),
)
"""Models by the year of their hardware; variants of one (`-noTSX`, `-v2`) go with it. Others are older than any."""
DRIVER = "qemu"
MOST_VMS = 500


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of one accelerator. cpu_model: the newest that all of them run, None: there is none; cpu_flags: those that
    every host has; lacks_flags: by node, what others have and it has not; machine_types: those all have.
    """

    accelerator: str
    nodes: list[str]
    cpu_model: str | None
    cpu_models: list[str]
    cpu_flags: list[str]
    lacks_flags: dict[str, list[str]]
    machine_types: list[str]


class BoundVm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that not every node could take. cannot: why, one for each that could not; could: where it could go;
    is_locked_in: nowhere, but for the node it is on.
    """

    vm: str
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    cannot: list[Reason]
    could: list[str]
    is_locked_in: bool


class CpuBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """baselines: one for each accelerator; vms: the bound ones, those locked in first, at most MOST_VMS; vms_left_off:
    how many more; unknown: nodes that have not said what they have.
    """

    baselines: list[Baseline]
    vms: list[BoundVm]
    vms_left_off: int
    unknown: list[str]


def cpu_baseline(nodes: Iterable[Node], vms: Iterable[Vm], without: Collection[str] = ()) -> CpuBaseline:
    """As the cluster is, or would be without the nodes of these ids."""
    every = sorted(nodes, key=lambda node: node.name)
    left = [node for node in every if node.id not in without]
    names = {node.id: node.name for node in every}
    found = [bound for vm in vms if (bound := _bound(vm, left, names)) is not None]
    found.sort(key=lambda one: (not one.is_locked_in, one.vm))
    accelerators = sorted({name for node in left if (name := _accelerator(node))})
    return CpuBaseline(
        baselines=[_baseline(name, [node for node in left if _accelerator(node) == name]) for name in accelerators],
        vms=found[:MOST_VMS],
        vms_left_off=max(0, len(found) - MOST_VMS),
        unknown=[node.name for node in left if not _accelerator(node)],
    )


def newest(models: Collection[str]) -> str | None:
    """The newest of these models by their hardware; the plainest of its variants."""
    ranked = min(models, key=_age, default=None)
    return ranked if ranked is not None and _age(ranked)[0] < len(NEWEST_FIRST) else None


def _age(model: str) -> tuple[int, int, str]:
    families = [at for at, name in enumerate(NEWEST_FIRST) if model == name or model.startswith(f"{name}-")]
    family = max(families, key=lambda at: len(NEWEST_FIRST[at]), default=len(NEWEST_FIRST))  # EPYC-Rome is no EPYC
    return family, len(model), model


def _baseline(accelerator: str, nodes: Sequence[Node]) -> Baseline:
    drivers = [driver for node in nodes if (driver := driver_of(node)) is not None]
    models = _common(driver.cpu_models for driver in drivers)
    hosts = {node.name: set(node.facts.cpu_flags) for node in nodes if node.facts}
    flags = set.intersection(*hosts.values()) if hosts else set()
    any_has = set.union(*hosts.values()) if hosts else set()
    return Baseline(
        accelerator=accelerator,
        nodes=[node.name for node in nodes],
        cpu_model=newest(models),
        cpu_models=sorted(models),
        cpu_flags=sorted(flags),
        lacks_flags={name: sorted(lacking) for name, own in hosts.items() if (lacking := any_has - own)},
        machine_types=sorted(_common(driver.machine_types for driver in drivers)),
    )


def _common(many: Iterable[Sequence[str]]) -> set[str]:
    sets = [set(one) for one in many]
    return set.intersection(*sets) if sets else set()


def takers(vm: Vm, nodes: Iterable[Node]) -> tuple[list[str], list[Reason]]:
    """Those that have the CPU model, machine type and accelerator it runs with, and why the others cannot take it.

    Of nodes that have not said what they have nothing is told.
    """
    need = Need(
        memory_mib=0,
        vcpus=0,
        machine=vm.spec.machine,
        machine_type=vm.pins.machine_type,
        cpu_model=vm.pins.cpu_model,
        accelerator=accelerator_of(vm),
    )
    told = (node for node in nodes if node.facts is not None)
    answers = [(node, compatible(need, Candidate(node=node), Limits())) for node in told]
    cannot = [reason for _, reason in answers if reason is not None]
    return [node.name for node, reason in answers if reason is None], cannot


def accelerator_of(vm: Vm) -> str:
    """What it was last seen to run under; empty: it has not run."""
    return vm.observed.accelerator if vm.observed else ""


def _bound(vm: Vm, nodes: Sequence[Node], names: dict[str, str]) -> BoundVm | None:
    """None: every other node could take it, or it has no pins yet."""
    if not vm.pins.cpu_model and not vm.pins.machine_type:
        return None
    could, cannot = takers(vm, (node for node in nodes if node.id != vm.node_id))
    if not cannot and could:
        return None
    return BoundVm(
        vm=vm.name,
        vm_id=vm.id,
        node=names.get(vm.node_id),
        cpu_model=vm.pins.cpu_model,
        machine_type=vm.pins.machine_type,
        accelerator=accelerator_of(vm),
        cannot=cannot,
        could=could,
        is_locked_in=not could,
    )


def driver_of(node: Node) -> DriverFacts | None:
    """Its facts about the driver that machines here run under."""
    return next((driver for driver in node.facts.drivers if driver.name == DRIVER), None) if node.facts else None


def _accelerator(node: Node) -> str:
    driver = driver_of(node)
    return driver.accelerator.name if driver and driver.accelerator else ""
