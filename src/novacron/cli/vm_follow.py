"""What the commands of a VM share: have something done, wait for what comes of it, and say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from novacron.cli import safe
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.call import Call
    from novacron.client.goals import Goal
    from novacron.client.sync import Client
    from novacron.client.vms import Vm, Waiting


def verb(session: Session, call: Call[Vm], state: str, wait: bool, timeout_s: float) -> None:
    """Ask for it; with `wait` until the VM has settled in that state."""
    from novacron.client.goals import vm_settles

    with session.connect() as nova:
        found = nova.do(call)
        warn(found.warnings)
        if wait:
            found = wait_for(nova, found.id, vm_settles(state), timeout_s)
    say(session, found)


def warn(warnings: Sequence[Waiting]) -> None:
    """What an answer warns of, on stderr."""
    for one in warnings:
        click.echo(safe.line(f"warning: {one.message} ({one.code}); {one.remedy}"), err=True)


def wait_for(nova: Client, ref: str, goal: Goal[Vm], timeout_s: float) -> Vm:
    """The VM as soon as it is so."""
    with _shown() as tell:
        return nova.wait_vm(ref, goal, deadline_s=timeout_s, on_update=tell)


def wait_gone(nova: Client, ref: str, timeout_s: float) -> None:
    """Return when it is deleted."""
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


def say(session: Session, vm: Vm, what: str = "") -> None:
    """The last line: how the VM is now, or what was done to it."""
    from novacron.cli import vm_show

    where = f" on {vm.node}" if vm.node and not what else ""
    session.printer.done(vm, f"{vm.name}: {what or vm.state}{where}", vm_show.name)
