"""`novacron schedule`: have snapshots taken by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, TIME, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.schedules import Schedule

SCHEDULE = click.argument("schedule", metavar="SCHEDULE", shell_complete=names("schedules"))


@click.group()
def schedule() -> None:
    """Have snapshots taken by themselves, and only the newest kept. SCHEDULE is a name or an id."""


@schedule.command()
@click.argument("name")
@click.option("--vms", "selector", type=PAIR, metavar="KEY=VALUE", multiple=True, required=True,
              help="Of the VMs with this label; an empty value: any value. Repeatable: all of them.")  # fmt: skip
@click.option("--every", "every_s", type=TIME, metavar="TIME", required=True, help="How often, as in 1h or 24h.")
@click.option("--keep", type=click.IntRange(1, 100), default=7, show_default=True, help="How many of each VM.")
@click.option("--memory", is_flag=True, help="With the memory of those that run.")
@click.option("--no-quiesce", is_flag=True, help="Do not ask guest agents to freeze file systems.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the schedule. Repeatable.")
@click.option("--paused", is_flag=True, help="Make it, do not begin.")
@prints
@asks
def create(session: Session, name: str, selector: tuple[tuple[str, str], ...], every_s: float, keep: int, memory: bool,
           no_quiesce: bool, labels: tuple[tuple[str, str], ...], paused: bool) -> None:  # fmt: skip
    """Take a snapshot of each VM with these labels, again and again.

    \b
    novacron schedule create hourly --vms tier=db --every 1h --keep 24
    """
    from novacron.client import schedules

    wish = schedules.ScheduleCreate(
        name=name,
        selector=dict(selector),
        every_s=round(every_s),
        keep=keep,
        memory=memory,
        quiesce=not no_quiesce,
        paused=paused,
        labels=dict(labels),
    )
    with session.connect() as nova:
        made = nova.do(schedules.create(wish))
    session.printer.done(made, f"{made.name}: {_next(made)}", _name)


@schedule.command("list")
@selects
@prints
@asks
def list_schedules(session: Session, selector: tuple[str, ...]) -> None:
    """List schedules, oldest first."""
    from novacron.client import schedules

    with session.connect() as nova:
        session.printer.many(nova.each(schedules.search(labels=selector)), _columns(), _name)


@schedule.command()
@SCHEDULE
@prints
@asks
def show(session: Session, schedule: str) -> None:
    """Show one schedule."""
    from novacron.client import schedules

    with session.connect() as nova:
        session.printer.one(nova.do(schedules.get(schedule)), _details, _name)


@schedule.command()
@SCHEDULE
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--vms", "selector", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Instead of those so far.")
@click.option("--every", "every_s", type=TIME, metavar="TIME", help="How often.")
@click.option("--keep", type=click.IntRange(1, 100), help="How many of each VM.")
@click.option("--memory/--no-memory", default=None, help="With the memory of those that run, or without.")
@click.option("--quiesce/--no-quiesce", default=None, help="Ask guest agents to freeze file systems, or do not.")
@prints
@asks
def update(session: Session, schedule: str, selector: tuple[tuple[str, str], ...], every_s: float | None,
           **given: Any) -> None:  # fmt: skip
    """Change a schedule."""
    changes = {key: value for key, value in given.items() if value is not None}
    changes |= {"selector": dict(selector)} if selector else {}
    changes |= {"every_s": round(every_s)} if every_s is not None else {}
    if not changes:
        raise click.UsageError("say what to change; --help lists it")
    _change(session, schedule, "changed", **changes)


@schedule.command()
@SCHEDULE
@prints
@asks
def pause(session: Session, schedule: str) -> None:
    """Take no more snapshots, and delete none, until it is resumed."""
    _change(session, schedule, "paused", paused=True)


@schedule.command()
@SCHEDULE
@prints
@asks
def resume(session: Session, schedule: str) -> None:
    """Go on; what was missed is not made up for."""
    _change(session, schedule, "goes on", paused=False)


@schedule.command()
@SCHEDULE
@confirms
@asks
def delete(session: Session, schedule: str, yes: bool) -> None:
    """Delete a schedule; the snapshots it took stay."""
    from novacron.cli import safe
    from novacron.client import schedules

    confirm(f"Delete schedule {safe.line(schedule)}?", yes=yes)
    with session.connect() as nova:
        nova.do(schedules.delete(schedule))
    click.echo(safe.line(f"{schedule}: deleted"))


def _change(session: Session, ref: str, word: str, **changes: Any) -> None:
    from novacron.client import schedules

    with session.connect() as nova:
        changed = nova.do(schedules.update(ref, schedules.ScheduleUpdate(**changes)))
    session.printer.done(changed, f"{changed.name}: {word}", _name)


def _columns() -> list[Column[Schedule]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    return [
        Column("NAME", lambda one: one.name),
        Column("VMS", _selector),
        Column("EVERY", lambda one: amounts.seconds(one.every_s)),
        Column("KEEP", lambda one: str(one.keep)),
        Column("KIND", _kind),
        Column("LAST", lambda one: f"{one.last_at:%Y-%m-%d %H:%M}" if one.last_at else "-"),
        Column("NEXT", lambda one: f"{one.next_at:%Y-%m-%d %H:%M}" if one.next_at else "paused"),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Schedule) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts

    yield "Id", one.id
    yield "Name", one.name
    yield "VMs", _selector(one)
    yield "Every", amounts.seconds(one.every_s)
    yield "Keeps", f"{one.keep} of each VM"
    yield "Kind", _kind(one)
    yield "Last", f"{one.last_at:%Y-%m-%d %H:%M:%S} UTC" if one.last_at else "never"
    yield "Next", _next(one)
    for key, value in one.labels.items():
        yield "Label", f"{key}={value}"


def _kind(one: Schedule) -> str:
    return "memory" if one.memory else "quiesced" if one.quiesce else "crash"


def _selector(one: Schedule) -> str:
    return ",".join(f"{key}={value}" if value else key for key, value in one.selector.items())


def _next(one: Schedule) -> str:
    return f"next at {one.next_at:%Y-%m-%d %H:%M:%S} UTC" if one.next_at else "paused"


def _name(one: Schedule) -> str:
    return one.name
