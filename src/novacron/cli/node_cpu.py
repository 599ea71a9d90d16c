"""`novacron node cpu-baseline`: what virtual CPU all nodes run, and who could go where now and after changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.nodes import Baseline, CpuBaseline, CpuBaselinePlan, CpuChanges, NodeAfter

MACHINES = ("pc-q35-", "pc-i440fx-", "microvm")
"""How the names of machine types begin; CPU flags have other names."""
MAX_FILE_BYTES = 1 << 20


@click.command("cpu-baseline")
@click.option("--without", metavar="NODE", multiple=True, shell_complete=names("nodes"),
              help="As if this node were gone. Repeatable.")  # fmt: skip
@click.option("--after", metavar="CHANGE", multiple=True,
              help="As if this had been changed: see above. Repeatable, also with --without.")  # fmt: skip
@prints
@asks
def cpu_baseline(session: Session, without: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Show which virtual CPU all nodes run, and which VMs only some of them could take.

    A VM keeps the CPU model and the machine type it first started with; this says which of them bind it.

    With --after it says which VMs could go where now and after changes, and who would be locked in:
    node-3=Skylake-Server (hardware of that model), node-3=@FILE (its flags, as in /proc/cpuinfo), +node-9=MODEL
    (a new node), node-3:-avx512f (flags less or more), node-2:-pc-q35-7.2 (machine types less or more, of another
    QEMU), node-2:qemu=9.0 (the QEMU that another node has), vm/web-1=MODEL, vm/*=MODEL (what a VM, or every VM, is
    given).
    """
    from novacron.client import nodes

    with session.connect() as nova:
        if after:
            planned = nova.do(nodes.plan_cpu_baseline(changes(after, without)))
            session.printer.one(planned, _plan_details, lambda one: "\n".join(vm.vm for vm in one.vms))
            return
        found = nova.do(nodes.cpu_baseline(without=without))
    session.printer.one(found, _details, lambda one: ", ".join(_models(one)))


def changes(after: Sequence[str], without: Sequence[str]) -> CpuChanges:
    """The changes as the API takes them. :raise BadParameter: one that cannot be read, or a node with two hardwares."""
    from novacron.client.nodes import CpuChanges, NodeAfter

    nodes: dict[str, NodeAfter] = {name: NodeAfter(gone=True) for name in without}
    vms: dict[str, str] = {}
    for text in after:
        name, sign, rest = _split(text)
        if name.startswith("vm/"):
            if sign != "=" or len(name) == len("vm/"):
                raise _unreadable(text)
            vms[name.removeprefix("vm/")] = rest
            continue
        key = name.removeprefix("+")
        nodes[key] = _merged(nodes.get(key, NodeAfter(added=name != key)), sign, rest, text)
    every = vms.pop("*", None)
    return CpuChanges(nodes=nodes, vms=vms, every_vm=every)


def _split(text: str) -> tuple[str, str, str]:
    """Name, sign and the rest: which of the two signs comes first counts."""
    at = min((place for sign in "=:" if (place := text.find(sign)) > 0), default=0)
    if not at or at + 1 == len(text):
        raise _unreadable(text)
    return text[:at], text[at], text[at + 1 :]


def _merged(now: NodeAfter, sign: str, rest: str, text: str) -> NodeAfter:
    import msgspec

    if sign == "=":
        if now.cpu_model is not None or now.cpu_flags is not None:
            raise click.BadParameter(f"{text!r}: that node is given hardware twice", param_hint="--after")
        hardware = {"cpu_flags": _flags_in(Path(rest[1:]))} if rest.startswith("@") else {"cpu_model": rest}
        return msgspec.structs.replace(now, **hardware)
    for item in rest.split(","):
        word = item[1:]
        kind = "machine_types" if word.startswith(MACHINES) else "cpu_flags"
        if item.startswith("qemu="):
            now = msgspec.structs.replace(now, qemu_version=item.removeprefix("qemu="))
        elif word and item[0] in "+-":
            field = f"{'add' if item[0] == '+' else 'remove'}_{kind}"
            now = msgspec.structs.replace(now, **{field: [*getattr(now, field), word]})
        else:
            raise _unreadable(text)
    return now


def _flags_in(path: Path) -> list[str]:
    """Those of a copy of /proc/cpuinfo, or all words of the file."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(MAX_FILE_BYTES)
    except OSError as wrong:
        raise click.BadParameter(f"{path} cannot be read: {wrong.strerror}", param_hint="--after") from wrong
    told = [line.partition(":")[2] for line in text.splitlines() if line.partition(":")[0].strip() == "flags"]
    flags = (told[0] if told else text).split()
    if not flags:
        raise click.BadParameter(f"{path} holds no flags", param_hint="--after")
    return flags


def _unreadable(text: str) -> click.BadParameter:
    known = (
        "NODE=MODEL, NODE=@FILE, +NODE=MODEL, NODE:-FLAG, NODE:-pc-q35-7.2, NODE:qemu=9.0, vm/NAME=MODEL or vm/*=MODEL"
    )
    return click.BadParameter(f"{text!r} is none of {known}", param_hint="--after")


def _models(found: CpuBaseline) -> list[str]:
    return [f"{one.accelerator}: {one.cpu_model or 'none'}" for one in found.baselines]


def _cluster(baselines: Sequence[Baseline], unknown: Sequence[str]) -> Iterator[tuple[str, str]]:
    for one in baselines:
        yield "Accelerator", f"{one.accelerator}, on {', '.join(one.nodes)}"
        yield "CPU model", f"{one.cpu_model or 'none that all run'} (all run: {', '.join(one.cpu_models) or 'none'})"
        yield "Machines", ", ".join(one.machine_types) or "none that all have"
        for name, lacking in one.lacks_flags.items():
            yield "Flags", f"{name} lacks {', '.join(lacking)}"
    if unknown:
        yield "Unknown", f"{', '.join(unknown)} have not said what they have"


def _details(found: CpuBaseline) -> Iterator[tuple[str, str]]:
    yield from _cluster(found.baselines, found.unknown)
    for vm in found.vms:
        where = f"locked in on {vm.node}" if vm.is_locked_in else f"could go to {', '.join(vm.could)}"
        why = "; ".join(reason.message for reason in vm.cannot) or "there is no other node"
        yield "VM", f"{vm.vm}: {where}: {why}"
    if not found.vms:
        yield "VMs", "every node could take each of them"
    if found.vms_left_off:
        yield "And", f"{found.vms_left_off} more"


def _plan_details(found: CpuBaselinePlan) -> Iterator[tuple[str, str]]:
    yield from _cluster(found.baselines, found.unknown)
    for sentence in found.assumed:
        yield "Assumed", sentence
    for vm in found.vms:
        stays = "" if vm.can_stay else f"could not start on {vm.node} again, " if vm.node else ""
        where = f"could go to {', '.join(vm.could)}" if vm.could else "locked in" if vm.can_stay else "could go nowhere"
        yield "VM", f"{vm.vm} (on {vm.node or 'no node'}): {stays}{where}; now: {', '.join(vm.could_now) or 'nowhere'}"
        for reason in vm.cannot:
            yield "Why", reason.message
        if vm.remedy:
            yield "Do", vm.remedy
    yield "Others", f"nothing changes for {found.vms_unchanged}"
    if found.vms_left_off:
        yield "And", f"{found.vms_left_off} more"
