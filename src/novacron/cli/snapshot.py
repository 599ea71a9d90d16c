"""`novacron snapshot`: keep VMs as they are at a moment, and go back to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, asks, confirm, confirms, prints, selects, waits
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.snapshots import Snapshot
    from novacron.client.sync import Client

SNAPSHOT = click.argument("snapshot", metavar="SNAPSHOT")
STATES = ("creating", "ready", "reverting", "deleting", "exporting", "error")


@click.group()
def snapshot() -> None:
    """Keep VMs as they are at a moment, and go back to it. SNAPSHOT is an id or VM/NAME."""


@snapshot.command()
@click.argument("vm", metavar="VM", shell_complete=names("vms"))
@click.argument("name", required=False)
@click.option("--memory", is_flag=True, help="With what it has in memory, to run on from there. It stands meanwhile.")
@click.option("--quiesce", is_flag=True, help="Have its guest agent freeze its file systems first.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@waits("1h")
@prints
@asks
def create(
    session: Session,
    vm: str,
    name: str | None,
    memory: bool,
    quiesce: bool,
    description: str,
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    timeout_s: float,
) -> None:
    """Take a snapshot of all disks of a VM, running or stopped.

    \b
    novacron snapshot create web-1 before-upgrade --memory --wait
    """
    from novacron.client import snapshots

    wish = snapshots.SnapshotCreate(
        name=name, memory=memory, quiesce=quiesce, description=description, labels=dict(labels)
    )
    with session.connect() as nova:
        made = nova.do(snapshots.create(vm, wish))
        made = nova.wait_snapshot(made.id, deadline_s=timeout_s) if wait else made
    session.printer.done(made, f"{_title(made)}: {made.state}{_stood(made)}", _name)


@snapshot.command("list")
@selects
@click.option("--vm", metavar="VM", default="", shell_complete=names("vms"), help="Only those of this VM.")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@prints
@asks
def list_snapshots(session: Session, selector: tuple[str, ...], vm: str, state: str | None) -> None:
    """List snapshots as trees, one for each VM; * marks the one a VM stands on."""
    from novacron.client import snapshots

    with session.connect() as nova:
        found = list(nova.each(snapshots.search(labels=selector, vm=vm, state=state or "")))
    depths = dict(_tree(found))
    by_id = {one.id: one for one in found}
    session.printer.many([by_id[one] for one in depths], _columns(depths), _name)


@snapshot.command()
@SNAPSHOT
@prints
@asks
def show(session: Session, snapshot: str) -> None:
    """Show one snapshot."""
    from novacron.client import snapshots

    with session.connect() as nova:
        session.printer.one(nova.do(snapshots.get(_id_of(nova, snapshot))), _details, _name)


@snapshot.command()
@SNAPSHOT
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--description", metavar="TEXT", help="A new description.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take it away. Repeatable.")
@prints
@asks
def update(
    session: Session,
    snapshot: str,
    name: str | None,
    description: str | None,
    labels: tuple[tuple[str, str], ...],
    remove_label: tuple[str, ...],
) -> None:
    """Change a snapshot's name, description or labels."""
    from msgspec import UNSET

    from novacron.client import snapshots

    with session.connect() as nova:
        before = nova.do(snapshots.get(_id_of(nova, snapshot)))
        kept = {key: value for key, value in before.labels.items() if key not in remove_label} | dict(labels)
        change = snapshots.SnapshotUpdate(
            name=UNSET if name is None else name,
            description=UNSET if description is None else description,
            labels=kept if kept != before.labels else UNSET,
        )
        changed = nova.do(snapshots.update(before.id, change, revision=before.revision))
    session.printer.done(changed, f"{_title(changed)}: changed", _name)


@snapshot.command()
@SNAPSHOT
@click.option("--start", is_flag=True, help="Start the VM afterwards. One kept with its memory runs on by itself.")
@confirms
@waits("1h")
@prints
@asks
def revert(session: Session, snapshot: str, start: bool, yes: bool, wait: bool, timeout_s: float) -> None:
    """Have a VM go back to a snapshot. What it did since is lost, unless another snapshot holds it."""
    from novacron.client import snapshots

    with session.connect() as nova:
        known = nova.do(snapshots.get(_id_of(nova, snapshot)))
        from novacron.cli import safe

        confirm(f"End VM {safe.line(known.vm_name)} and give up what it did since {safe.line(known.name)}?", yes=yes)
        asked = nova.do(snapshots.revert(known.id, snapshots.RevertRequest(start=start)))
        asked = nova.wait_snapshot(asked.id, deadline_s=timeout_s) if wait else asked
    words = f"{asked.vm_name} is back" if wait else f"{asked.vm_name} goes back"
    session.printer.done(asked, f"{_title(asked)}: {words}", _name)


@snapshot.command()
@SNAPSHOT
@confirms
@waits("1h")
@asks
def delete(session: Session, snapshot: str, yes: bool, wait: bool, timeout_s: float) -> None:
    """Delete a snapshot; its VM may run. Those taken after it stay."""
    from novacron.cli import safe
    from novacron.client import snapshots

    confirm(f"Delete snapshot {safe.line(snapshot)} for good?", yes=yes)
    with session.connect() as nova:
        leaving = nova.do(snapshots.delete(_id_of(nova, snapshot)))
        if wait:
            nova.wait_snapshot_gone(leaving.id, deadline_s=timeout_s)
    click.echo(safe.line(f"{_title(leaving)}: {'deleted' if wait else 'is being deleted'}"))


@snapshot.command()
@SNAPSHOT
@click.argument("image")
@click.option("--volume", metavar="ID", help="Which volume, when the snapshot has several.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the image. Repeatable.")
@waits("6h")
@prints
@asks
def export(
    session: Session,
    snapshot: str,
    image: str,
    volume: str | None,
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    timeout_s: float,
) -> None:
    """Make an image, named IMAGE, of a volume as it was."""
    from novacron.client import images, snapshots

    wish = snapshots.ExportRequest(image=image, volume_id=volume, labels=dict(labels))
    with session.connect() as nova:
        snapshot_id = _id_of(nova, snapshot)
        made = nova.do(snapshots.export(snapshot_id, wish))
        if wait:
            nova.wait_snapshot(snapshot_id, deadline_s=timeout_s)
            made = nova.do(images.get(made.id))
    session.printer.done(made, f"image {made.name}: {'ready' if wait else 'is being made'}", lambda one: one.name)


# -- parts ---------------------------------------------------------------------------------------------------


def _id_of(nova: Client, ref: str) -> str:
    """The id that `ref` is or, as VM/NAME, stands for. :raise NotFound"""
    from novacron.client import snapshots
    from novacron.errors import NotFound

    vm, separator, name = ref.partition("/")
    if not separator:
        return ref
    for one in nova.each(snapshots.search(vm=vm, name=name)):
        return one.id
    raise NotFound(f"VM {vm!r} has no snapshot {name!r}")


def _tree(found: list[Snapshot]) -> Iterator[tuple[str, int]]:
    """(id, depth) of each, VM by VM, children below their parents."""
    ids = {one.id for one in found}
    children: dict[str, list[str]] = {}
    roots: dict[str, list[str]] = {}
    for one in found:
        if one.parent_id in ids:
            children.setdefault(one.parent_id or "", []).append(one.id)
        else:
            roots.setdefault(one.vm_id, []).append(one.id)
    waiting = [(root, 0) for vm_roots in roots.values() for root in vm_roots][::-1]
    while waiting:
        snapshot_id, depth = waiting.pop()
        yield snapshot_id, depth
        waiting += [(child, depth + 1) for child in reversed(children.get(snapshot_id, []))]


def _columns(depths: dict[str, int]) -> list[Column[Snapshot]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("VM", lambda one: one.vm_name),
        Column("NAME", lambda one: f"{'  ' * depths[one.id]}{one.name}{' *' if one.current else ''}"),
        Column("STATE", lambda one: one.state),
        Column("KIND", lambda one: one.consistency),
        Column("MEMORY", lambda one: amounts.size(one.size_bytes) if one.size_bytes else "-"),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("ID", lambda one: one.id),
        Column("VOLUMES", lambda one: str(len(one.volumes)), wide=True),
        Column("DESCRIPTION", lambda one: one.description or "-", wide=True),
        Column("PROBLEM", lambda one: one.problem.message if one.problem else "-", wide=True),
    ]


def _details(one: Snapshot) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts

    yield "Id", one.id
    yield "Name", one.name
    yield "VM", f"{one.vm_name} ({one.vm_id})" + ("; stands on this one" if one.current else "")
    yield "State", one.state
    yield "Kind", one.consistency
    if one.problem:
        yield "Problem", f"{one.problem.message} ({one.problem.code})"
        if one.problem.remedy:
            yield "What to do", one.problem.remedy
    yield "Parent", one.parent_id or "none"
    yield "Machine", f"{one.vcpus} vCPUs, {amounts.size(one.memory_mib << 20)}"
    for volume in one.volumes:
        yield "Volume", volume
    if one.size_bytes:
        yield "Memory", amounts.size(one.size_bytes)
    if one.stood_still_ms:
        yield "Stood still", amounts.milliseconds(one.stood_still_ms)
    if one.description:
        yield "Description", one.description
    for key, value in one.labels.items():
        yield "Label", f"{key}={value}"
    yield "Taken", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _stood(one: Snapshot) -> str:
    from novacron.cli import amounts

    return f"; the guest stood still for {amounts.milliseconds(one.stood_still_ms)}" if one.stood_still_ms else ""


def _title(one: Snapshot) -> str:
    return f"{one.vm_name}/{one.name}"


def _name(one: Snapshot) -> str:
    return one.id
