"""`novacron vm park` and `vm copy`: keep the memory of a running VM, and make VMs that begin where it stood."""

from __future__ import annotations

from typing import Any

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, asks, prints, waits
from novacron.cli.session import Session
from novacron.cli.vm_follow import verb, wait_for, warn
from novacron.cli.vm_spec import NIC_RULE, NicType, nic_in

VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))


@click.command()
@VM
@waits("2m")
@prints
@asks
def park(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """End a running VM and keep its memory, for copies. It must have been made with --shared-memory."""
    from novacron.client import vms

    verb(session, vms.park(vm), "parked", wait, timeout_s)


@click.command()
@VM
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="NAME-1, NAME-2 and so on.")
@click.option("--first", type=click.IntRange(min=1), default=1, show_default=True, help="Where the numbers begin.")
@click.option("--nic", "nics", type=NicType(), metavar="NIC", multiple=True, help=f"{NIC_RULE}. Repeatable, up to 2.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@waits("5m")
@prints
@asks
def copy(
    session: Session,
    vm: str,
    name: str,
    count: int,
    first: int,
    nics: tuple[dict[str, Any], ...],
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    timeout_s: float,
) -> None:
    """Make VMs that begin at once where a parked one stood: all of them, or none.

    \b
    novacron vm copy golden worker --count 20 --nic user --wait
    """
    from novacron.cli import vm_show
    from novacron.client import vms
    from novacron.client.goals import vm_settles

    wish = vms.CopiesCreate(
        name=name, count=count, first_index=first, nics=[nic_in(nic) for nic in nics], labels=dict(labels)
    )
    with session.connect() as nova:
        answer = nova.do(vms.copy(vm, wish))
        warn(answer.warnings)
        made = answer.items
        if wait:
            made = [wait_for(nova, one.id, vm_settles("running"), timeout_s) for one in made]
    session.printer.many(iter(made), vm_show.columns(), vm_show.name)
