"""`novacron migration rehearse` and `novacron migration rehearsal`: try a move with a copy, look after the tries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, RATE, TIME, asks, prints, selects, waits
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.rehearsals import Rehearsal
    from novacron.client.sync import Client

STATES = ("copying", "booting", "examining", "keeping", "cleaning", "passed", "failed", "cancelled")
REHEARSAL = click.argument("rehearsal", metavar="REHEARSAL")


@click.command()
@click.argument("vm", metavar="VM", shell_complete=names("vms"))
@click.option("--to", "target_node", metavar="NODE", shell_complete=names("nodes"),
              help="Where the copy boots; default: where the VM would be moved to.")  # fmt: skip
@click.option("--keep-for", "keep_for_s", metavar="TIME", type=TIME, default="0s", show_default=True,
              help="Let the copy run on for so long once the verdict is there.")  # fmt: skip
@click.option("--boot-within", "boot_within_s", metavar="TIME", type=TIME, default="2m", show_default=True,
              help="How long its guest may take to show signs of life.")  # fmt: skip
@click.option("--watch-for", "watch_for_s", metavar="TIME", type=TIME, default="10s", show_default=True,
              help="How long it must live.")  # fmt: skip
@click.option("--bandwidth", "bandwidth_bytes_per_s", metavar="RATE", type=RATE, default=0,
              help="At most so fast its disks are copied; default: as the link.")  # fmt: skip
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the rehearsal. Repeatable.")
@waits("24h")
@prints
@asks
def rehearse(session: Session, vm: str, target_node: str | None, keep_for_s: float, boot_within_s: float,
             watch_for_s: float, bandwidth_bytes_per_s: float, labels: tuple[tuple[str, str], ...], wait: bool,
             timeout_s: float) -> None:  # fmt: skip
    """Boot a copy of a running VM on another node, on a network of its own, and say whether it lives there.

    The VM runs on; its disks are only read. The copy is deleted once it was looked at, with all that was made for it.
    With --wait the last lines are the verdict, and the exit code is 1 when it failed.

    \b
    novacron migration rehearse web-1 --to node-2 --wait
    novacron migration rehearse web-1 --keep-for 10m     # then: novacron vm console of the copy
    """
    from novacron.client import rehearsals

    wish = rehearsals.RehearsalCreate(
        vm=vm,
        target_node=target_node,
        keep_for_s=keep_for_s,
        boot_within_s=boot_within_s,
        watch_for_s=watch_for_s,
        bandwidth_bytes_per_s=int(bandwidth_bytes_per_s),
        labels=dict(labels),
    )
    with session.connect() as nova:
        begun = nova.do(rehearsals.create(wish))
        if wait:
            _follow(session, nova, begun.id, timeout_s)
            return
    sentence = (
        f"{begun.vm_name}: {begun.copy_name} is to boot on {begun.target_node}; "
        f"novacron migration rehearsal watch {begun.id}"
    )
    session.printer.done(begun, sentence, _name)


@click.group()
def rehearsal() -> None:
    """Look after rehearsals of migrations. REHEARSAL is an id; `migration rehearse` begins one."""


@rehearsal.command("list")
@selects
@click.option("--vm", metavar="VM", default="", shell_complete=names("vms"), help="Only those of this VM.")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@prints
@asks
def list_rehearsals(session: Session, selector: tuple[str, ...], vm: str, state: str | None) -> None:
    """List rehearsals, oldest first."""
    from novacron.client import rehearsals

    with session.connect() as nova:
        found = nova.each(rehearsals.search(labels=selector, vm=vm, state=state or ""))
        session.printer.many(found, _columns(), _name)


@rehearsal.command()
@REHEARSAL
@prints
@asks
def show(session: Session, rehearsal: str) -> None:
    """Show one rehearsal: how far it is, and what was found."""
    from novacron.client import rehearsals

    with session.connect() as nova:
        session.printer.one(nova.do(rehearsals.get(rehearsal)), _details, _name)


@rehearsal.command()
@REHEARSAL
@click.option("--timeout", "timeout_s", metavar="TIME", type=TIME, default="24h", show_default=True, help="How long.")
@prints
@asks
def watch(session: Session, rehearsal: str, timeout_s: float) -> None:
    """Show its progress until it ends, then the verdict."""
    with session.connect() as nova:
        _follow(session, nova, rehearsal, timeout_s)


@rehearsal.command()
@REHEARSAL
@prints
@asks
def cancel(session: Session, rehearsal: str) -> None:
    """Have the copy deleted at once; a verdict that is there already stays."""
    from novacron.client import rehearsals

    with session.connect() as nova:
        asked = nova.do(rehearsals.cancel(rehearsal))
    session.printer.done(asked, f"{asked.id}: {asked.state}; {asked.vm_name} runs on as before", _name)


@rehearsal.command()
@REHEARSAL
@asks
def delete(session: Session, rehearsal: str) -> None:
    """Forget a rehearsal that has ended."""
    from novacron.client import rehearsals

    with session.connect() as nova:
        nova.do(rehearsals.delete(rehearsal))
    click.echo(f"{rehearsal}: forgotten")


def _follow(session: Session, nova: Client, rehearsal_id: str, timeout_s: float) -> None:
    """Show its states, then the verdict. :raise Exit: with 1, it did not pass."""
    from novacron.cli.progress import Stage, progress

    with progress() as show:
        try:
            ended = nova.wait_rehearsal(
                rehearsal_id,
                deadline_s=timeout_s,
                on_update=lambda one: show(Stage(f"{one.vm_name}: {one.copy_name} on {one.target_node} {one.state}")),
            )
        except KeyboardInterrupt:
            click.echo(f"the rehearsal goes on; novacron migration rehearsal watch {rehearsal_id}", err=True)
            raise
    session.printer.one(ended, _details, _name)
    if ended.state != "passed":
        raise click.exceptions.Exit(1)


def _name(one: Rehearsal) -> str:
    return one.id


def _columns() -> list[Column[Rehearsal]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("ID", lambda one: one.id),
        Column("VM", lambda one: one.vm_name),
        Column("ON", lambda one: one.target_node),
        Column("STATE", lambda one: one.state),
        Column("VERDICT", lambda one: one.verdict.outcome if one.verdict else "-"),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("COPY", lambda one: one.copy_name, wide=True),
    ]


def _details(one: Rehearsal) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts

    yield "Id", one.id
    yield "VM", f"{one.vm_name}, on {one.source_node}"
    yield "Copy", f"{one.copy_name}, on {one.target_node}"
    yield "State", one.state
    if one.problem:
        yield "Problem", f"{one.problem.message} ({one.problem.code})"
        if one.problem.remedy:
            yield "What to do", one.problem.remedy
    if one.verdict:
        yield "Verdict", one.verdict.outcome.replace("_", " ")
        for check in one.verdict.checks:
            yield check.name.capitalize(), f"{check.outcome.replace('_', ' ')}: {check.evidence}"
    if one.figures.copy_ms is not None and one.figures.copied_bytes:
        yield "Copied", f"{amounts.size(one.figures.copied_bytes)} in {amounts.milliseconds(one.figures.copy_ms)}"
    if one.figures.boot_ms is not None:
        yield "Began in", amounts.milliseconds(one.figures.boot_ms)
    for sentence in one.explanation:
        yield "Because", sentence
    if one.kept_until and not one.is_final:
        yield "Kept until", f"{one.kept_until:%Y-%m-%d %H:%M:%S} UTC"
    yield "Begun", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if one.finished_at:
        yield "Ended", f"{one.finished_at:%Y-%m-%d %H:%M:%S} UTC"
