"""Nodes and VMs as they would be after changes somebody thinks of making. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.nodes.baseline import DRIVER, driver_of
from novacron.errors import InvalidInput
from novacron.model.cpu_models import flags_needed, known_models, models_run, normal
from novacron.model.node import DriverFacts, Node, NodeFacts
from novacron.model.vm import Vm
from novacron.wire.rest.nodes import CpuChanges, NodeAfter

EMULATED = "tcg"


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster then. assumed: what that rests on, in sentences."""

    nodes: list[Node]
    vms: list[Vm]
    assumed: list[str]


def renewed(nodes: Sequence[Node], vms: Sequence[Vm], changes: CpuChanges) -> Renewed:
    """All changes at once.

    :raise InvalidInput: no such node or VM, a model whose needs are not known, changes that contradict one another.
    """
    assumed: list[str] = []
    then = {node.id: node for node in nodes}
    for ref, change in changes.nodes.items():
        field, found = f"nodes.{ref}", _node(nodes, ref)
        _check(change, found, field)
        if found is not None and change.gone:
            del then[found.id]
            continue
        node = _added(ref, nodes, field, assumed) if found is None else found
        then[node.id] = _changed(node, nodes, change, field, assumed)
    return Renewed(nodes=list(then.values()), vms=_repinned(vms, changes), assumed=assumed)


def _node(nodes: Sequence[Node], ref: str) -> Node | None:
    return next((node for node in nodes if ref in (node.id, node.name)), None)


def _check(change: NodeAfter, found: Node | None, field: str) -> None:
    if found is None and not change.added:
        raise InvalidInput.field(field, "there is no such node", "novacron node list shows what there is; or say added")
    if found is not None and change.added:
        raise InvalidInput.field(f"{field}.added", "it is there already", "take another name, or leave out added")
    if change.gone and change != NodeAfter(gone=True):
        raise InvalidInput.field(f"{field}.gone", "it cannot be gone and be something else", "say one of them")
    if change.cpu_model is not None and change.cpu_flags is not None:
        raise InvalidInput.field(f"{field}.cpu_flags", "does not go with cpu_model", "leave one of them out")
    if change.added and change.cpu_model is None and change.cpu_flags is None:
        raise InvalidInput.field(f"{field}.cpu_model", "is missing of an added node", "say cpu_model or cpu_flags")


def _added(name: str, nodes: Sequence[Node], field: str, assumed: list[str]) -> Node:
    """A node with the QEMU of one that is there; one with KVM, where there is one."""
    told = [
        (driver.accelerator.name == EMULATED, node.name, node, driver)
        for node in nodes
        if (driver := driver_of(node)) and driver.accelerator
    ]
    if not told:
        raise InvalidInput.field(field, "no node has said what its QEMU has", "wait for an agent to join")
    emulated, like_name, like, driver = min(told, key=lambda one: one[:2])
    accelerator = EMULATED if emulated else "kvm"
    assumed.append(f"{name} has the QEMU of {like_name} ({driver.version}, {accelerator})")
    return msgspec.structs.replace(like, id=name, name=name)


def _changed(node: Node, nodes: Sequence[Node], change: NodeAfter, field: str, assumed: list[str]) -> Node:
    driver = driver_of(node)
    if driver is None or node.facts is None:
        raise InvalidInput.field(field, f"{node.name} has not said what it has", "wait for its agent to join")
    flags = _flags(node.facts, change, field)
    models = _models(driver, flags, change, field)
    # What emulation runs is QEMU's alone; whether KVM will work on new hardware nobody can know beforehand.
    if driver.accelerator is not None and driver.accelerator.name == EMULATED and models != set(driver.cpu_models):
        assumed.append(f"{node.name} emulates its CPUs (tcg): what it runs does not depend on its hardware")
        models = set(driver.cpu_models)
    unknown = sorted(set(driver.cpu_models) - models - set(known_models()))
    if unknown:
        assumed.append(f"{node.name} no more runs {', '.join(unknown)}: what these need is not known")
    changed = msgspec.structs.replace(
        driver,
        cpu_models=tuple(sorted(models)),
        version=change.qemu_version or driver.version,
        machine_types=_machine_types(driver, nodes, change, field),
    )
    drivers = tuple(changed if one.name == DRIVER else one for one in node.facts.drivers)
    return msgspec.structs.replace(
        node, facts=msgspec.structs.replace(node.facts, cpu_flags=tuple(sorted(flags)), drivers=drivers)
    )


def _flags(facts: NodeFacts, change: NodeAfter, field: str) -> set[str]:
    base = set(facts.cpu_flags)
    if change.cpu_flags is not None:
        base = {normal(flag) for flag in change.cpu_flags}
    elif change.cpu_model is not None:
        base = set(_needed(change.cpu_model, f"{field}.cpu_model"))
    return (base | {normal(flag) for flag in change.add_cpu_flags}) - {normal(flag) for flag in change.remove_cpu_flags}


def _models(driver: DriverFacts, flags: set[str], change: NodeAfter, field: str) -> set[str]:
    """Of the same hardware: those it says it runs, but for those that need what is taken away, and what is new."""
    if change.cpu_flags is not None or change.cpu_model is not None:
        return set(models_run(flags))
    gone = {normal(flag) for flag in change.remove_cpu_flags}
    if gone and not any(gone & (flags_needed(model) or frozenset()) for model in known_models()):
        message = f"no CPU model needs any of {', '.join(sorted(gone))}"
        raise InvalidInput.field(f"{field}.remove_cpu_flags", message, "write flags as /proc/cpuinfo does")
    kept = {model for model in driver.cpu_models if not gone & (flags_needed(model) or frozenset())}
    return kept | (set(models_run(flags)) if change.add_cpu_flags else set())


def _machine_types(driver: DriverFacts, nodes: Sequence[Node], change: NodeAfter, field: str) -> tuple[str, ...]:
    types = set(driver.machine_types)
    if change.qemu_version is not None:
        version = change.qemu_version
        like = (one for node in nodes if (one := driver_of(node)))
        known = next((one for one in like if one.version == version or one.version.startswith(f"{version}.")), None)
        if known is None and not change.remove_machine_types:
            message = f"no node has QEMU {version}, so what machine types it has is not known"
            raise InvalidInput.field(f"{field}.qemu_version", message, "name those that will be gone")
        types = set(known.machine_types) if known else types
    lacking = sorted(set(change.remove_machine_types) - types)
    if lacking and change.qemu_version is None:
        message = f"it does not have {', '.join(lacking)}"
        raise InvalidInput.field(f"{field}.remove_machine_types", message, f"it has {', '.join(sorted(types))}")
    return tuple(sorted((types | set(change.add_machine_types)) - set(change.remove_machine_types)))


def _repinned(vms: Sequence[Vm], changes: CpuChanges) -> list[Vm]:
    for model, field in ((changes.every_vm, "every_vm"), *((one, f"vms.{ref}") for ref, one in changes.vms.items())):
        if model is not None:
            _needed(model, field)
    known = {name for vm in vms for name in (vm.id, vm.name)}
    for ref in changes.vms:
        if ref not in known:
            raise InvalidInput.field(f"vms.{ref}", "there is no such VM", "novacron vm list shows what there is")
    return [_with_model(vm, changes.vms.get(vm.id) or changes.vms.get(vm.name) or changes.every_vm) for vm in vms]


def _with_model(vm: Vm, model: str | None) -> Vm:
    return msgspec.structs.replace(vm, pins=msgspec.structs.replace(vm.pins, cpu_model=model)) if model else vm


def _needed(model: str, field: str) -> frozenset[str]:
    needed = flags_needed(model)
    if needed is None:
        some = ", ".join(sorted(name for name in known_models() if name.lower().startswith(model[:4].lower()))[:12])
        remedy = f"known are {some}" if some else "take a name of QEMU's, as Icelake-Server; of a node, give its flags"
        raise InvalidInput.field(field, f"what CPU model {model} needs is not known", remedy)
    return needed
