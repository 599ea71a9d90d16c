"""`novacron vm nic`: the network cards of a VM that exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import asks, prints
from novacron.cli.session import Session
from novacron.cli.vm_spec import NicType, nic_in

if TYPE_CHECKING:
    from novacron.client.devices import Nic
    from novacron.client.sync import Client
    from novacron.client.vms import Vm

VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))
CARD = click.argument("card", metavar="CARD")


@click.group()
def nic() -> None:
    """Plug and unplug network cards, and say what may pass them. CARD is its id, MAC or an address of it."""


@nic.command()
@VM
@click.argument("card", metavar="NIC", type=NicType())
@prints
@asks
def add(session: Session, vm: str, card: dict[str, Any]) -> None:
    """Give a VM one more card, also while it runs."""
    from novacron.client import vms

    with session.connect() as nova:
        changed = nova.do(vms.attach_nic(vm, nic_in(card)))
    _say(session, changed)


@nic.command()
@VM
@CARD
@prints
@asks
def remove(session: Session, vm: str, card: str) -> None:
    """Take a card away, also while the VM runs."""
    from novacron.client import vms

    with session.connect() as nova:
        changed = nova.do(vms.detach_nic(vm, _card(nova, vm, card).id))
    _say(session, changed)


@nic.command()
@VM
@CARD
@click.option("--sg", "groups", metavar="GROUP", multiple=True, shell_complete=names("security_groups"),
              help="A security group: name all it is to be in. Repeatable.")  # fmt: skip
@click.option("--no-sg", is_flag=True, help="In no group: everything may pass.")
@click.option("--anti-spoofing/--no-anti-spoofing", default=None, help="Whether it sends as itself alone.")
@click.option("--boot", "boot_order", type=click.IntRange(0, 64), metavar="N",
              help="When it is asked to boot, from 1; 0: not at all. Counts from the next start.")  # fmt: skip
@prints
@asks
def update(session: Session, vm: str, card: str, groups: tuple[str, ...], no_sg: bool, anti_spoofing: bool | None,
           boot_order: int | None) -> None:  # fmt: skip
    """Change what may pass a card, which counts at once, also while the VM runs; or when it is asked to boot."""
    from novacron.client import devices, vms

    said: dict[str, Any] = {"security_groups": groups} if groups or no_sg else {}
    if anti_spoofing is not None:
        said["anti_spoofing"] = anti_spoofing
    if boot_order is not None:
        said["boot_order"] = boot_order
    if not said:
        raise click.UsageError("nothing to change was given")
    with session.connect() as nova:
        changed = nova.do(vms.update_nic(vm, _card(nova, vm, card).id, devices.NicUpdate(**said)))
    _say(session, changed)


def _card(nova: Client, vm: str, word: str) -> Nic:
    """:raise NotFound: the VM has no such card."""
    from novacron.client import vms
    from novacron.errors import NotFound

    for one in nova.do(vms.get(vm)).nics:
        if word.lower() in (one.id, one.mac, *one.addresses):
            return one
    raise NotFound(f"VM {vm} has no network card {word}: novacron vm show {vm} lists them")


def _say(session: Session, vm: Vm) -> None:
    from novacron.cli.vm_show import name

    count = "1 network card" if len(vm.nics) == 1 else f"{len(vm.nics)} network cards"
    session.printer.done(vm, f"{vm.name}: {count}" + (", being adjusted" if vm.task else ""), name)
