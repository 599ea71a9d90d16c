"""`novacron vm`: make, run, move and remove VMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.disk_spec import DISK_RULE, DiskType, disk_in
from novacron.cli.options import (
    FILE,
    PAIR,
    RATE,
    SIZE,
    TIME,
    asks,
    confirm,
    confirms,
    prints,
    selects,
    waits,
)
from novacron.cli.session import Session
from novacron.cli.vm_nic import nic
from novacron.cli.vm_spec import NIC_RULE, NicType, mebibytes, merged, nic_in, read_document, stop_request

if TYPE_CHECKING:
    from novacron.client.call import Call
    from novacron.client.goals import Goal
    from novacron.client.sync import Client
    from novacron.client.vms import Vm, VmCreate

STATES = (
    *("creating", "stopped", "starting", "running", "paused"),
    *("stopping", "migrating", "error", "deleting", "unknown"),
)
VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))


@click.group()
def vm() -> None:
    """Make, run, move and remove VMs. VM is a name or an id."""


vm.add_command(nic)

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
            _wait_gone(nova, vm, timeout_s)
            return
        found = _wait(nova, vm, vm_is(state), timeout_s)
    _say(session, found)


# -- making and changing -----------------------------------------------------------------------------------


@vm.command()
@click.argument("name")
@click.option("--image", required=True, metavar="IMAGE", shell_complete=names("images"), help="What it is made from.")
@click.option("--vcpus", type=click.IntRange(min=1), help="Virtual CPUs; default 1.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Memory, as in 512M or 2G; default 512M.")
@click.option("--root-disk", type=SIZE, metavar="SIZE", help="Size of the root disk; default: the image's own.")
@click.option("--root-pool", metavar="POOL", shell_complete=names("pools"), help="Where the root disk lies; default: "
              "the default pool.")  # fmt: skip
@click.option("--disk", "disks", type=DiskType(), metavar="DISK", multiple=True,
              help=f"One more disk: {DISK_RULE}. Repeatable.")  # fmt: skip
@click.option("--nic", "nics", type=NicType(), metavar="NIC", multiple=True,
              help=f"A network card: {NIC_RULE}. Repeatable; default: one on the user network.")  # fmt: skip
@click.option("--no-nic", is_flag=True, help="No network card at all.")
@click.option("--cloud-init", type=FILE, metavar="FILE", help="cloud-init user-data; - is stdin.")
@click.option("--cloud-init-network", type=FILE, metavar="FILE", help="cloud-init network-config.")
@click.option("--machine", type=click.Choice(["q35", "microvm"]), help="Virtual hardware; default q35.")
@click.option(
    "--firmware", type=click.Choice(["auto", "bios", "uefi"]), help="How it boots; default: as the image needs."
)
@click.option("--cmdline", default="", metavar="TEXT", help="Appended to the kernel's command line.")
@click.option("--guest-agent", is_flag=True, help="Give it a channel for the guest agent.")
@click.option("--node", metavar="NODE", shell_complete=names("nodes"), help="Where; default: the scheduler chooses.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@click.option("--stopped", is_flag=True, help="Make it, do not start it.")
@waits("5m")
@prints
@asks
def create(session: Session, stopped: bool, wait: bool, timeout_s: float, **given: Any) -> None:
    """Make a VM from an image and start it.

    \b
    novacron vm create web-1 --image debian-12 --vcpus 2 --memory 2G \\
        --nic user,forward=22 --nic bridge=br0 --label tier=web --wait
    """
    from novacron.client import vms
    from novacron.client.goals import vm_settles

    wish = _wish(given, stopped)
    with session.connect() as nova:
        made = nova.do(vms.create(wish))
        if wait:
            made = _wait(nova, made.id, vm_settles("stopped" if stopped else "running"), timeout_s)
    _say(session, made)


@vm.command()
@VM
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--description", metavar="TEXT", help="A new description.")
@click.option("--vcpus", type=click.IntRange(min=1), help="Counts from the next start.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Counts from the next start.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take it away. Repeatable.")
@prints
@asks
def update(session: Session, vm: str, labels: tuple[tuple[str, str], ...], remove_label: tuple[str, ...],
           **given: Any) -> None:  # fmt: skip
    """Change a VM."""
    import msgspec

    from novacron.cli.edit import edit
    from novacron.client import vms

    changes = {key: value for key, value in given.items() if value is not None}
    if "memory" in changes:
        changes["memory_mib"] = mebibytes(changes.pop("memory"), "--memory")
    if not changes and not labels and not remove_label:
        raise click.UsageError("nothing to change was given")
    change = vms.VmUpdate(**changes)
    with session.connect() as nova:
        if labels or remove_label:
            changed = edit(
                nova,
                vms.get(vm),
                lambda now: vms.update(
                    vm,
                    msgspec.structs.replace(change, labels=merged(now.labels, labels, remove_label)),
                    revision=now.revision,
                ),
            )
        else:
            changed = nova.do(vms.update(vm, change))
    _say(session, changed, "changed")


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
            _wait_gone(nova, leaving.id, timeout_s)
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

    _verb(session, vms.start(vm), "running", wait, timeout_s)


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

    _verb(session, vms.stop(vm, stop_request(force, grace_s)), "stopped", wait, timeout_s)


@vm.command()
@VM
@_stopping
@waits("5m")
@prints
@asks
def restart(session: Session, vm: str, force: bool, grace_s: float | None, wait: bool, timeout_s: float) -> None:
    """Stop a VM as `stop` does, then start it."""
    from novacron.client import vms

    _verb(session, vms.restart(vm, stop_request(force, grace_s)), "running", wait, timeout_s)


@vm.command()
@VM
@waits("1m")
@prints
@asks
def pause(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """Have a running VM stand still; its memory is kept."""
    from novacron.client import vms

    _verb(session, vms.pause(vm), "paused", wait, timeout_s)


@vm.command()
@VM
@waits("1m")
@prints
@asks
def resume(session: Session, vm: str, wait: bool, timeout_s: float) -> None:
    """Have a paused VM go on."""
    from novacron.client import vms

    _verb(session, vms.resume(vm), "running", wait, timeout_s)


@vm.command()
@VM
@click.option(
    "--to", "target", metavar="NODE", shell_complete=names("nodes"), help="Where to; default: the scheduler chooses."
)
@click.option("--max-downtime-ms", type=click.IntRange(1, 2_000_000), help="How long it may stand still; default 100.")
@click.option("--bandwidth", type=RATE, metavar="RATE", help="At most so fast, as in 100MiB/s; default: as the link.")
@click.option("--finish-within", type=TIME, metavar="TIME", help="Give up and roll back after this; default 1h.")
@click.option(
    "--kind", type=click.Choice(["live"]), help="live: it runs on meanwhile (the default, and the only kind yet)."
)
@waits("2h")
@prints
@asks
def migrate(session: Session, vm: str, target: str | None, wait: bool, timeout_s: float, **goals: Any) -> None:
    """Move a VM to another node while it runs.

    With --wait a bar shows what has been sent and what remains, and the last line what it cost.
    """
    from novacron.cli.follow import follow, say_begun
    from novacron.client import migrations

    named = {
        "max_downtime_ms": goals["max_downtime_ms"],
        "bandwidth_bytes_per_s": goals["bandwidth"],
        "finish_within_s": goals["finish_within"],
        "kind": goals["kind"],
        "target_node": target,
    }
    wish = migrations.MigrationCreate(vm=vm, **{key: value for key, value in named.items() if value is not None})
    with session.connect() as nova:
        begun = nova.do(migrations.create(wish))
        if wait:
            follow(session, nova, begun.id, timeout_s)
        else:
            say_begun(session, begun)


# -- parts -------------------------------------------------------------------------------------------------


def _wish(given: dict[str, Any], stopped: bool) -> VmCreate:
    """The options of `create` as the body that is sent."""
    from novacron.client import vms

    if given["no_nic"] and given["nics"]:
        raise click.UsageError("--no-nic and --nic exclude each other")
    more: dict[str, Any] = {
        key: given[key] for key in ("vcpus", "machine", "firmware", "node") if given[key] is not None
    }
    if given["memory"] is not None:
        more["memory_mib"] = mebibytes(given["memory"], "--memory")
    if given["nics"] or given["no_nic"]:
        more["nics"] = [nic_in(nic) for nic in given["nics"]]
    if stopped:
        more["desired"] = "stopped"
    user_data = read_document(given["cloud_init"], "--cloud-init")
    network = read_document(given["cloud_init_network"], "--cloud-init-network")
    return vms.VmCreate(
        name=given["name"],
        image=given["image"],
        description=given["description"],
        labels=dict(given["labels"]),
        kernel_cmdline=given["cmdline"],
        root_disk_bytes=given["root_disk"],
        root_pool=given["root_pool"],
        disks=tuple(disk_in(disk) for disk in given["disks"]),
        cloud_init=vms.CloudInitIn(user_data=user_data, network_config=network) if user_data or network else None,
        guest_agent=given["guest_agent"],
        **more,
    )


def _verb(session: Session, call: Call[Vm], state: str, wait: bool, timeout_s: float) -> None:
    from novacron.client.goals import vm_settles

    with session.connect() as nova:
        found = nova.do(call)
        if wait:
            found = _wait(nova, found.id, vm_settles(state), timeout_s)
    _say(session, found)


def _wait(nova: Client, ref: str, goal: Goal[Vm], timeout_s: float) -> Vm:
    with _shown() as tell:
        return nova.wait_vm(ref, goal, deadline_s=timeout_s, on_update=tell)


def _wait_gone(nova: Client, ref: str, timeout_s: float) -> None:
    with _shown() as tell:
        nova.wait_vm_gone(ref, deadline_s=timeout_s, on_update=tell)


@contextmanager
def _shown() -> Iterator[Callable[[Vm], None]]:
    """Progress of one VM; an interrupt ends the waiting, and says that it ends nothing else."""
    from novacron.cli import vm_show
    from novacron.cli.progress import progress

    try:
        with progress() as show:
            yield lambda vm: show(vm_show.stage(vm))
    except KeyboardInterrupt:
        click.echo("only the waiting ends; what was asked for goes on", err=True)
        raise


def _say(session: Session, vm: Vm, what: str = "") -> None:
    from novacron.cli import vm_show

    where = f" on {vm.node}" if vm.node and not what else ""
    session.printer.done(vm, f"{vm.name}: {what or vm.state}{where}", vm_show.name)
