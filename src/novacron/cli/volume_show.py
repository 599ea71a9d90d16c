"""How volumes are shown: columns, details, the stage a volume is at."""

from __future__ import annotations

from collections.abc import Iterator

from novacron.cli import amounts
from novacron.cli.output import Column
from novacron.cli.progress import Stage
from novacron.cli.vm_show import labels
from novacron.client.goals import Goal, trouble_of, vm_fits
from novacron.client.vms import Vm
from novacron.client.volumes import Volume


def columns() -> list[Column[Volume]]:
    """What lists of volumes show."""
    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("STATE", lambda one: one.state),
        Column("SIZE", lambda one: amounts.size(one.size_bytes)),
        Column("POOL", lambda one: one.pool),
        Column("VM", lambda one: one.vm or "-"),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("USED", lambda one: amounts.size(one.used_bytes) if one.used_bytes else "-", wide=True),
        Column("NODE", lambda one: one.node or "-", wide=True),
        Column("TASK", lambda one: one.task or "-", wide=True),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def name(one: Volume) -> str:
    """What `-o name` prints."""
    return one.name


def word(one: Volume) -> str:
    """Its state, and its size."""
    return f"{one.state}, {amounts.size(one.size_bytes)}"


def stage(one: Volume) -> Stage:
    """Where the work on it is."""
    return Stage(f"{one.name}: {one.task or one.state}", f"in {one.pool}")


def adjusted() -> Goal[Vm]:
    """Nothing is being done on the VM any more; refused when that failed."""

    def is_met(vm: Vm) -> bool:
        if vm.task is None and vm.problem is not None and not vm.problem.refused:
            raise trouble_of(vm.name, vm.problem)
        return vm.task is None

    return vm_fits(is_met, "adjusted")


def details(one: Volume) -> Iterator[tuple[str, str]]:
    """Everything worth reading about one volume."""
    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "State", one.state + (f" ({one.task} under way)" if one.task else "")
    if one.problem:
        yield "Problem", f"{one.problem.message} ({one.problem.code})"
        if one.problem.remedy:
            yield "What to do", one.problem.remedy
    yield "Size", amounts.size(one.size_bytes) + (f", {amounts.size(one.used_bytes)} used" if one.used_bytes else "")
    yield "Pool", one.pool + (f" on {one.node}" if one.node else "")
    if one.vm:
        yield "VM", one.vm + (", deleted with it" if one.with_vm else ", outlives it")
    if one.qos.iops or one.qos.bytes_per_s:
        yield "Limits", ", ".join(_limits(one))
    if one.source_volume_id:
        yield "Cloned from", one.source_volume_id
    if one.backing_digest:
        yield "Image file", one.backing_digest
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _limits(one: Volume) -> Iterator[str]:
    if one.qos.iops:
        yield f"{one.qos.iops} operations/s"
    if one.qos.bytes_per_s:
        yield amounts.rate(one.qos.bytes_per_s)
