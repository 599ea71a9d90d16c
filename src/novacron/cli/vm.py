"""`novacron vm`: make, run, move and remove VMs."""

from __future__ import annotations

from typing import Any

import click

from novacron.cli.complete import names
from novacron.cli.options import (
    TIME,
    asks,
    confirm,
    confirms,
    prints,
    selects,
    waits,
)
from novacron.cli.session import Session
from novacron.cli.vm_copy import copy, park
from novacron.cli.vm_follow import say, verb, wait_for, wait_gone
from novacron.cli.vm_make import create, update
from novacron.cli.vm_media import media
from novacron.cli.vm_migrate import migrate
from novacron.cli.vm_nic import nic
from novacron.cli.vm_placement import placement
from novacron.cli.vm_spec import stop_request

STATES = (
    *("creating", "stopped", "starting", "running", "paused"),
    *("stopping", "migrating", "error", "deleting", "unknown", "parked"),
)
VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))


@click.group()
def vm() -> None:
    """Make, run, move and remove VMs. VM is a name or an id."""


for more in (create, update, nic, media, park, copy, migrate, placement):
    vm.add_command(more)

# -- looking -----------------------------------------------------------------------------------------------


@vm.command("list")
@selects
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--node", metavar="NODE", default="", shell_complete=names("nodes"), help="Only those on this node.")
@prints
@asks
def list_vms(session: Session, selector: tuple[str, ...], state: str | None, node: str) -> None:
    """List VMs, oldest first."""
    from novacron.cli import vm_show
    from novacron.client import vms

    with session.connect() as nova:
        found = nova.each(vms.search(labels=selector, state=state or "", node=node))
        session.printer.many(found, vm_show.columns(), vm_show.name)


@vm.command()
@VM
@prints
@asks
def show(session: Session, vm: str) -> None:
    """Show one VM."""
    from novacron.cli import vm_show
    from novacron.client import vms

    with session.connect() as nova:
        session.printer.one(nova.do(vms.get(vm)), vm_show.details, vm_show.name)


@vm.command()
@VM
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written (looks twice a second).")
@click.option("--raw", is_flag=True, help="Print it as it is: only for guests that may control your terminal.")
@click.option("--bytes", "max_bytes", type=click.IntRange(1, 1 << 20), default=65536, show_default=True,
              help="How much of its end.")  # fmt: skip
@asks
def console(session: Session, vm: str, follow: bool, raw: bool, max_bytes: int) -> None:
    """Print what a VM wrote to its serial console. Colours and cursor moves are left out."""
    from novacron.cli.console import print_console

    with session.connect() as nova:
        print_console(nova, vm, max_bytes, follow=follow, raw=raw)


@vm.command()
@VM
@click.option("--state", type=click.Choice(STATES), default="running", show_default=True, help="Which state.")
@click.option("--gone", is_flag=True, help="Wait until it is deleted instead.")
@click.option("--timeout", "timeout_s", metavar="TIME", type=TIME, default="5m", show_default=True, help="How long.")
@prints
@asks
def wait(session: Session, vm: str, state: str, gone: bool, timeout_s: float) -> None:
    """Return once a VM is in a state. Fails when it ends in error instead."""
    from novacron.client.goals import vm_is

    with session.connect() as nova:
        if gone:
            wait_gone(nova, vm, timeout_s)
            return
        found = wait_for(nova, vm, vm_is(state), timeout_s)
    say(session, found)


# -- deleting ----------------------------------------------------------------------------------------------


@vm.command()
@VM
@click.option("--force", is_flag=True, help="Also when it runs: it is ended at once.")
@confirms
@waits("5m")
@asks
def delete(session: Session, vm: str, force: bool, yes: bool, wait: bool, timeout_s: float) -> None:
    """Delete a stopped VM and its disks."""
    from novacron.cli import safe
    from novacron.client import vms

    confirm(f"Delete VM {safe.line(vm)} and its disks for good?", yes=yes)
    with session.connect() as nova:
        leaving = nova.do(vms.delete(vm, force=force))
        if wait:
            wait_gone(nova, leaving.id, timeout_s)
    click.echo(safe.line(f"{leaving.name}: {'deleted' if wait else 'is being deleted'}"))


# -- running -----------------------------------------------------------------------------------------------


@vm.command()
@VM
@waits("5m")
@prints
@asks
def start(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """Start a stopped VM."""
    from novacron.client import vms

    verb(session, vms.start(vm), "running", wait, timeout_s)


def _stopping(function: Any) -> Any:
    function = click.option("--deadline", "grace_s", metavar="TIME", type=TIME,
                            help="How long its guest may take before it is ended; default 60s.")(function)  # fmt: skip
    return click.option("--force", is_flag=True, help="End it at once, without asking its guest.")(function)


@vm.command()
@VM
@_stopping
@waits("5m")
@prints
@asks
def stop(session: Session, vm: str, force: bool, grace_s: float | None, wait: bool, timeout_s: float) -> None:
    """Stop a VM: its guest is asked, and ended when it takes too long."""
    from novacron.client import vms

    verb(session, vms.stop(vm, stop_request(force, grace_s)), "stopped", wait, timeout_s)


@vm.command()
@VM
@_stopping
@waits("5m")
@prints
@asks
def restart(session: Session, vm: str, force: bool, grace_s: float | None, wait: bool, timeout_s: float) -> None:
    """Stop a VM as `stop` does, then start it."""
    from novacron.client import vms

    verb(session, vms.restart(vm, stop_request(force, grace_s)), "running", wait, timeout_s)


@vm.command()
@VM
@waits("1m")
@prints
@asks
def pause(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """Have a running VM stand still; its memory is kept."""
    from novacron.client import vms

    verb(session, vms.pause(vm), "paused", wait, timeout_s)


@vm.command()
@VM
@waits("1m")
@prints
@asks
def resume(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """Have a paused VM go on."""
    from novacron.client import vms

    verb(session, vms.resume(vm), "running", wait, timeout_s)
