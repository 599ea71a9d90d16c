"""How VMs are shown: columns, details, and the stage a VM is at."""

from __future__ import annotations

from collections.abc import Iterator

from novacron.cli import amounts
from novacron.cli.ha_options import ha_words
from novacron.cli.output import Column
from novacron.cli.placement_options import node_rule_words, toleration_words, vm_rule_words
from novacron.cli.progress import Stage
from novacron.client.devices import Nic
from novacron.client.placement import Placement
from novacron.client.vms import Vm


def columns() -> list[Column[Vm]]:
    """What lists of VMs show."""
    now = amounts.now()
    return [
        Column("NAME", lambda vm: vm.name),
        Column("STATE", lambda vm: vm.state),
        Column("NODE", lambda vm: vm.node or "-"),
        Column("VCPUS", lambda vm: str(vm.vcpus)),
        Column("MEMORY", lambda vm: amounts.size(vm.memory_mib << 20)),
        Column("AGE", lambda vm: amounts.age(vm.created_at, now)),
        Column("TASK", lambda vm: vm.task.kind if vm.task else "-", wide=True),
        Column("ACCEL", lambda vm: vm.accelerator or "-", wide=True),
        Column("REACHABLE", lambda vm: ", ".join(_endpoints(vm)) or "-", wide=True),
        Column("LABELS", lambda vm: labels(vm.labels) or "-", wide=True),
        Column("ID", lambda vm: vm.id, wide=True),
    ]


def name(vm: Vm) -> str:
    """What `-o name` prints."""
    return vm.name


def labels(pairs: dict[str, str]) -> str:
    """`a=b, c=d`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def stage(vm: Vm) -> Stage:
    """Where the work on it is."""
    return Stage(f"{vm.name}: {vm.state}", f"on {vm.node}" if vm.node else "")


def details(vm: Vm) -> Iterator[tuple[str, str]]:
    """Everything worth reading about one VM."""
    yield "Name", vm.name
    yield "Id", vm.id
    if vm.description:
        yield "Description", vm.description
    yield "State", vm.state + (f" (wanted {vm.desired})" if vm.desired != vm.state else "")
    if vm.task:
        yield "Task", f"{vm.task.kind}, asked for at {vm.task.requested_at:%Y-%m-%d %H:%M:%S} UTC"
    if vm.problem:
        yield "Problem", f"{vm.problem.message} ({vm.problem.code})"
        if vm.problem.remedy:
            yield "What to do", vm.problem.remedy
    for waiting in vm.pending:
        yield "Waits", f"{waiting.message} ({waiting.subject})" if waiting.subject else waiting.message
    yield "Node", vm.node or "none yet"
    if vm.migration_id:
        yield "Migration", vm.migration_id
    yield from _hardware(vm)
    yield from _wishes(vm.placement)
    if ha_words(vm.ha):
        yield "If its node fails", ha_words(vm.ha)
    yield "Labels", labels(vm.labels) or "none"
    yield "Created", f"{vm.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if vm.pid:
        yield "Process", f"{vm.pid} on {vm.node}"


def _wishes(wished: Placement) -> Iterator[tuple[str, str]]:
    """What it wishes of its node, as the options say it."""
    if wished.policy:
        yield "Policy", wished.policy
    for toleration in wished.tolerations:
        yield "Tolerates", toleration_words(toleration)
    for vm_rule in wished.vm_rules:
        yield "Affinity", vm_rule_words(vm_rule)
    for node_rule in wished.node_rules:
        yield "Node rule", node_rule_words(node_rule)


def _hardware(vm: Vm) -> Iterator[tuple[str, str]]:
    yield "Size", f"{vm.vcpus} vCPU, {amounts.size(vm.memory_mib << 20)} memory" + _growth(vm)
    yield (
        "Machine",
        ", ".join(part for part in (vm.machine_type or vm.machine, f"firmware {vm.firmware}", vm.accelerator) if part),
    )
    yield "Image", vm.image_id
    for disk in vm.disks:
        yield "Disk", f"{amounts.size(disk.size_bytes)}, volume {disk.volume_id}{_boots(disk.boot_order)}"
    for number, drive in enumerate(vm.media, 1):
        holds = f"holds {drive.digest[:12]}" if drive.digest else "empty"
        yield "Drive", f"{number}, {drive.bus}, {holds}{_boots(drive.boot_order)}"
    extras = [name for name, has in (("TPM", vm.tpm), ("Secure Boot", vm.secure_boot)) if has]
    if extras:
        yield "Security", ", ".join(extras)
    for nic in vm.nics:
        yield "Network", _nic(nic)
    for endpoint in _endpoints(vm):
        yield "Reachable", endpoint


def _boots(number: int) -> str:
    return f", boots as number {number}" if number else ""


def _growth(vm: Vm) -> str:
    most = [f"{vm.max_vcpus} vCPU"] if vm.max_vcpus else []
    most += [amounts.size(vm.max_memory_mib << 20)] if vm.max_memory_mib else []
    return f" (can grow to {', '.join(most)})" if most else ""


def _endpoints(vm: Vm) -> list[str]:
    return [f"{one.host}:{one.host_port} -> guest port {one.guest_port}" for one in vm.endpoints]


def _nic(nic: Nic) -> str:
    where = f"bridge {nic.bridge}" if nic.bridge else f"{nic.network} network"
    if nic.network_id:
        groups = f"{len(nic.security_groups)} security groups" if nic.security_groups else "everything may pass"
        spoofing = "" if nic.anti_spoofing else ", anti-spoofing off"
        addresses = ", ".join(nic.addresses) or "no address of ours"
        boots = _boots(nic.boot_order)
        return f"{addresses} on network {nic.net}, MAC {nic.mac}, {groups}{spoofing}{boots}\ncard {nic.id}"
    forwards = ", ".join(f"{one.host_port or 'any'}:{one.guest_port}" for one in nic.forwards)
    return f"{where}, MAC {nic.mac}" + (f", forwards {forwards}" if forwards else "") + _boots(nic.boot_order)
