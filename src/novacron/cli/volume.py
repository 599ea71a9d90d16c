"""`novacron volume`: disks with a life of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.disk_spec import disk_in, qos_in
from novacron.cli.options import PAIR, RATE, SIZE, asks, confirm, confirms, prints, selects, waits
from novacron.cli.session import Session
from novacron.cli.vm_spec import merged

if TYPE_CHECKING:
    from novacron.client.call import Call
    from novacron.client.goals import Goal
    from novacron.client.sync import Client
    from novacron.client.volumes import Volume

STATES = ("creating", "available", "attached", "deleting", "error")
VOLUME = click.argument("volume", metavar="VOLUME", shell_complete=names("volumes"))
IOPS = click.option("--iops", type=click.IntRange(min=0), help="At most so many operations a second; 0: without limit.")
RATE_LIMIT = click.option(
    "--rate", type=RATE, metavar="RATE", help="At most so fast, as in 100MiB/s; 0: without limit."
)


@click.group()
def volume() -> None:
    """Keep disks, with VMs and without. VOLUME is a name or an id."""


@volume.command("list")
@selects
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--pool", metavar="POOL", default="", shell_complete=names("pools"), help="Only those in this pool.")
@click.option("--vm", metavar="VM", default="", shell_complete=names("vms"), help="Only those attached to this VM.")
@prints
@asks
def list_volumes(session: Session, selector: tuple[str, ...], state: str | None, pool: str, vm: str) -> None:
    """List volumes, oldest first. The disks of VMs are among them."""
    from novacron.cli import volume_show
    from novacron.client import volumes

    with session.connect() as nova:
        found = nova.each(volumes.search(labels=selector, state=state or "", pool=pool, vm=vm))
        session.printer.many(found, volume_show.columns(), volume_show.name)


@volume.command()
@VOLUME
@prints
@asks
def show(session: Session, volume: str) -> None:
    """Show one volume."""
    from novacron.cli import volume_show
    from novacron.client import volumes

    with session.connect() as nova:
        session.printer.one(nova.do(volumes.get(volume)), volume_show.details, volume_show.name)


@volume.command()
@click.argument("name")
@click.option("--size", "size_bytes", type=SIZE, metavar="SIZE", help="As in 10G; default: as what it is made from.")
@click.option("--pool", metavar="POOL", shell_complete=names("pools"), help="Where it lies; default: the default pool.")
@click.option("--image", metavar="IMAGE", shell_complete=names("images"), help="Begin as the disk of this image.")
@click.option("--from", "source", metavar="VOLUME", shell_complete=names("volumes"), help="Begin as this volume is.")
@click.option("--snapshot", metavar="SNAPSHOT", help="With --from: as it was then (an id).")
@click.option("--node", metavar="NODE", shell_complete=names("nodes"), help="Where, when nodes do not share the pool.")
@IOPS
@RATE_LIMIT
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@waits("1h")
@prints
@asks
def create(session: Session, wait: bool, timeout_s: float, **given: Any) -> None:
    """Make a volume: empty, from an image, or from another volume.

    \b
    novacron volume create data --size 100G --pool fast --iops 2000 --wait
    novacron volume create copy --from data --wait
    """
    from novacron.client import volumes

    if given["size_bytes"] is None and given["image"] is None and given["source"] is None:
        raise click.UsageError("an empty volume needs --size")
    named = {key: given[key] for key in ("size_bytes", "pool", "image", "snapshot", "node") if given[key] is not None}
    qos = qos_in(given["iops"], given["rate"])
    wish = volumes.VolumeCreate(
        name=given["name"],
        volume=given["source"],
        labels=dict(given["labels"]),
        description=given["description"],
        **named | ({"qos": qos} if qos else {}),
    )
    _do(session, volumes.create(wish), wait, timeout_s)


@volume.command()
@VOLUME
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--description", metavar="TEXT", help="A new description.")
@IOPS
@RATE_LIMIT
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take it away. Repeatable.")
@prints
@asks
def update(session: Session, volume: str, labels: tuple[tuple[str, str], ...], remove_label: tuple[str, ...],
           iops: int | None, rate: int | None, **given: Any) -> None:  # fmt: skip
    """Change a volume's words and limits, also while a VM runs with it."""
    from novacron.cli.edit import edit
    from novacron.client import volumes

    changes = {key: value for key, value in given.items() if value is not None}
    if not changes and not labels and not remove_label and iops is None and rate is None:
        raise click.UsageError("nothing to change was given")

    def change(now: Volume) -> Call[Volume]:
        if labels or remove_label:
            changes["labels"] = merged(now.labels, labels, remove_label)
        if iops is not None or rate is not None:
            changes["qos"] = qos_in(
                now.qos.iops if iops is None else iops, now.qos.bytes_per_s if rate is None else rate
            )
        return volumes.update(volume, volumes.VolumeUpdate(**changes), revision=now.revision)

    with session.connect() as nova:
        changed = edit(nova, volumes.get(volume), change)
    _say(session, changed, "changed")


@volume.command()
@VOLUME
@click.argument("size", type=SIZE)
@waits("5m")
@prints
@asks
def grow(session: Session, volume: str, size: int, wait: bool, timeout_s: float) -> None:
    """Make a volume larger, also while a VM runs with it. SIZE is its new size; it never becomes smaller.

    The guest then has a larger disk; growing the file system on it is up to the guest.
    """
    from novacron.client import volumes

    _do(session, volumes.update(volume, volumes.VolumeUpdate(size_bytes=size)), wait, timeout_s)


@volume.command()
@VOLUME
@confirms
@waits("5m")
@asks
def delete(session: Session, volume: str, yes: bool, wait: bool, timeout_s: float) -> None:
    """Delete a volume that is attached to no VM, for good."""
    from novacron.cli import safe
    from novacron.client import volumes

    confirm(f"Delete volume {safe.line(volume)} and all that is on it for good?", yes=yes)
    with session.connect() as nova:
        leaving = nova.do(volumes.delete(volume))
        if wait:
            nova.wait_volume_gone(leaving.id, deadline_s=timeout_s)
    click.echo(safe.line(f"{leaving.name}: {'deleted' if wait else 'is being deleted'}"))


@volume.command()
@VOLUME
@click.argument("vm", metavar="VM", shell_complete=names("vms"))
@click.option("--boot", "boot_order", type=click.IntRange(1, 64), help="When it is asked to boot, from 1.")
@waits("5m")
@prints
@asks
def attach(session: Session, volume: str, vm: str, boot_order: int | None, wait: bool, timeout_s: float) -> None:
    """Give a volume to a VM, at once while it runs. It outlives the VM."""
    from novacron.cli import volume_show
    from novacron.client import volumes

    with session.connect() as nova:
        changed = nova.do(volumes.attach(vm, disk_in({"volume": volume, "boot_order": boot_order or 0})))
        if wait:
            changed = nova.wait_vm(changed.id, volume_show.adjusted(), deadline_s=timeout_s)
    session.printer.done(changed, f"{changed.name}: {volume} is attached", lambda one: one.name)


@volume.command()
@VOLUME
@waits("5m")
@prints
@asks
def detach(session: Session, volume: str, wait: bool, timeout_s: float) -> None:
    """Take a volume from its VM, at once while it runs. What is on it stays."""
    from novacron.client import volumes
    from novacron.client.goals import volume_is_free

    with session.connect() as nova:
        found = nova.do(volumes.get(volume))
        if found.vm_id is not None:
            nova.do(volumes.detach(found.vm_id, found.id))
            found = _wait(nova, found.id, volume_is_free(), timeout_s) if wait else nova.do(volumes.get(found.id))
    _say(session, found, "detached" if found.vm is None else f"is being detached from {found.vm}")


# -- parts -------------------------------------------------------------------------------------------------


def _do(session: Session, call: Call[Volume], wait: bool, timeout_s: float) -> None:
    from novacron.client.goals import volume_settles

    with session.connect() as nova:
        found = nova.do(call)
        if wait:
            found = _wait(nova, found.id, volume_settles(), timeout_s)
    _say(session, found)


def _wait(nova: Client, ref: str, goal: Goal[Volume], timeout_s: float) -> Volume:
    from novacron.cli import volume_show
    from novacron.cli.progress import progress

    with progress() as show:
        return nova.wait_volume(ref, goal, deadline_s=timeout_s, on_update=lambda one: show(volume_show.stage(one)))


def _say(session: Session, found: Volume, what: str = "") -> None:
    from novacron.cli import volume_show

    session.printer.done(found, f"{found.name}: {what or volume_show.word(found)}", volume_show.name)
