"""`novacron vm media`: the CD-ROM drives of a VM, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.disk_spec import BUSES
from novacron.cli.options import asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.devices import Media
    from novacron.client.sync import Client
    from novacron.client.vms import Vm

VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))
IMAGE = click.argument("image", metavar="IMAGE", shell_complete=names("images"))
DRIVE = click.option("--drive", metavar="N", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Which of its drives, as `vm show` counts them.")  # fmt: skip


@click.group()
def media() -> None:
    """Add CD-ROM drives, and change what is in them while the VM runs."""


@media.command()
@VM
@click.option("--image", metavar="IMAGE", shell_complete=names("images"), help="With the ISO of an image in it.")
@click.option("--boot-order", type=click.IntRange(min=0), default=0, help="From 1; default: after its disks.")
@click.option("--bus", type=click.Choice(BUSES), help="Default: scsi if it starts from its image's kernel, else sata.")
@prints
@asks
def add(session: Session, vm: str, image: str | None, boot_order: int, bus: str | None) -> None:
    """Give a VM one more drive, from its next start on."""
    from novacron.client import devices, vms

    with session.connect() as nova:
        changed = nova.do(vms.add_media(vm, devices.MediaIn(image=image, boot_order=boot_order, bus=bus)))
    _say(session, changed)


@media.command()
@VM
@IMAGE
@DRIVE
@prints
@asks
def insert(session: Session, vm: str, image: str, drive: int) -> None:
    """Put the ISO of an image into a drive, in place of what is in it."""
    from novacron.client import vms

    with session.connect() as nova:
        changed = nova.do(vms.load_media(vm, _drive(nova, vm, drive).id, image))
    _say(session, changed)


@media.command()
@VM
@DRIVE
@prints
@asks
def eject(session: Session, vm: str, drive: int) -> None:
    """Take out what is in a drive."""
    from novacron.client import vms

    with session.connect() as nova:
        changed = nova.do(vms.load_media(vm, _drive(nova, vm, drive).id, None))
    _say(session, changed)


@media.command()
@VM
@DRIVE
@prints
@asks
def remove(session: Session, vm: str, drive: int) -> None:
    """Take a drive away, from the VM's next start on."""
    from novacron.client import vms

    with session.connect() as nova:
        changed = nova.do(vms.remove_media(vm, _drive(nova, vm, drive).id))
    _say(session, changed)


def _drive(nova: Client, vm: str, number: int) -> Media:
    """:raise NotFound: the VM has no such drive."""
    from novacron.client import vms
    from novacron.errors import NotFound

    drives = nova.do(vms.get(vm)).media
    if number > len(drives):
        raise NotFound(f"VM {vm} has {len(drives)} CD-ROM drives: novacron vm media add {vm} gives it one")
    return drives[number - 1]


def _say(session: Session, vm: Vm) -> None:
    from novacron.cli.vm_show import name

    count = "1 CD-ROM drive" if len(vm.media) == 1 else f"{len(vm.media)} CD-ROM drives"
    session.printer.done(vm, f"{vm.name}: {count}" + (", being adjusted" if vm.task else ""), name)
