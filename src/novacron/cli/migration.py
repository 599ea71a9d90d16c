"""`novacron migration`: watch, pace and cancel the moving of VMs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import RATE, TIME, asks, prints, selects
from novacron.cli.rehearsal import rehearsal, rehearse
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.migrations import Migration

STATES = (
    *("pending", "preparing", "transferring", "switching", "verifying", "completed"),
    *("cancelling", "cancelled", "rolling_back", "rolled_back", "failed"),
)
MIGRATION = click.argument("migration", metavar="MIGRATION")


@click.group()
def migration() -> None:
    """Watch, pace and cancel the moving of VMs. MIGRATION is an id; `vm migrate` begins one."""


@migration.command("list")
@selects
@click.option("--vm", metavar="VM", default="", shell_complete=names("vms"), help="Only those of this VM.")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@prints
@asks
def list_migrations(session: Session, selector: tuple[str, ...], vm: str, state: str | None) -> None:
    """List migrations, oldest first."""
    from novacron.cli.follow import name
    from novacron.client import migrations

    with session.connect() as nova:
        found = nova.each(migrations.search(labels=selector, vm=vm, state=state or ""))
        session.printer.many(found, _columns(), name)


@migration.command()
@MIGRATION
@prints
@asks
def show(session: Session, migration: str) -> None:
    """Show one migration: steps, progress, figures, and why things were chosen."""
    from novacron.cli.follow import name
    from novacron.client import migrations

    with session.connect() as nova:
        session.printer.one(nova.do(migrations.get(migration)), _details, name)


@migration.command()
@MIGRATION
@prints
@asks
def cancel(session: Session, migration: str) -> None:
    """Take a migration back; its VM goes on running where it is."""
    from novacron.cli.follow import name
    from novacron.client import migrations

    with session.connect() as nova:
        asked = nova.do(migrations.cancel(migration))
    where = f"on {asked.source_node}" if asked.steps_begun else "where it is"
    session.printer.done(asked, f"{asked.id}: {asked.state}; {asked.vm_name} stays {where}", name)


@migration.command("set-bandwidth")
@MIGRATION
@click.argument("rate", metavar="RATE", type=RATE)
@prints
@asks
def set_bandwidth(session: Session, migration: str, rate: int) -> None:
    """Have a migration go no faster than RATE (10MiB/s) from now on, also while it streams; 0: as the link."""
    from novacron.cli import amounts
    from novacron.cli.follow import name
    from novacron.client import migrations

    with session.connect() as nova:
        changed = nova.do(migrations.set_bandwidth(migration, rate))
    words = f"at most {amounts.rate(rate)}" if rate else "as fast as the link"
    session.printer.done(changed, f"{changed.id}: {changed.state}; {words} from now on", name)


@migration.command("discard-copies")
@MIGRATION
@prints
@asks
def discard_copies(session: Session, migration: str) -> None:
    """Delete, for good, the copies of disks that were kept at the source because the target's differ."""
    from novacron.cli.follow import name
    from novacron.client import migrations

    with session.connect() as nova:
        done = nova.do(migrations.discard_copies(migration))
    session.printer.done(done, f"{done.id}: its copies of disks on {done.source_node} are deleted", name)


@migration.command()
@MIGRATION
@click.option("--timeout", "timeout_s", metavar="TIME", type=TIME, default="2h", show_default=True, help="How long.")
@prints
@asks
def watch(session: Session, migration: str, timeout_s: float) -> None:
    """Show a migration's progress until it ends, then what it cost."""
    from novacron.cli.follow import follow

    with session.connect() as nova:
        follow(session, nova, migration, timeout_s)


migration.add_command(rehearse)
migration.add_command(rehearsal)


def _columns() -> list[Column[Migration]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()

    def measured(value_ms: float | None) -> str:
        return "-" if value_ms is None else amounts.milliseconds(value_ms)

    return [
        Column("ID", lambda one: one.id),
        Column("VM", lambda one: one.vm_name),
        Column("FROM", lambda one: one.source_node),
        Column("TO", lambda one: one.target_node),
        Column("STATE", _state),
        Column("TOTAL", lambda one: measured(one.figures.total_ms)),
        Column("DOWNTIME", lambda one: measured(one.figures.downtime_qemu_ms)),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("KIND", lambda one: f"{one.kind}/{one.strategy}" if one.kind == "live" else one.kind, wide=True),
        Column("OFF BY", lambda one: _off(one) or "-", wide=True),
        Column("SENT", lambda one: _sent(one), wide=True),
        Column("ROUNDS", lambda one: str(one.figures.iterations or "-"), wide=True),
        Column("PROBLEM", lambda one: one.problem.message if one.problem else "-", wide=True),
    ]


def _state(one: Migration) -> str:
    if not one.waits_for_its_time or one.not_before is None:
        return one.state
    return "waits, held up" if one.held_up else f"waits until {one.not_before:%Y-%m-%d %H:%M}"


def _off(one: Migration) -> str:
    from novacron.cli.plan_show import off

    return off(one)


def _sent(one: Migration) -> str:
    from novacron.cli import amounts

    count = one.figures.bytes_transferred
    if count is None and one.progress is not None:
        count = one.progress.transferred_bytes
    return "-" if count is None else amounts.size(count)


def _details(one: Migration) -> Iterator[tuple[str, str]]:
    from novacron.cli.follow import stage, summary
    from novacron.cli.plan_show import measured, off, predicted

    yield "Id", one.id
    yield "VM", f"{one.vm_name} ({one.vm_id})"
    yield "Kind", f"{one.kind}, {one.strategy}" if one.kind == "live" else one.kind
    yield "State", one.state + (" (may be cancelled)" if one.may_cancel else "")
    yield "From", one.source_node
    yield "To", one.target_node
    yield "Goals", _goals(one)
    yield from _waits(one)
    if one.measured:
        yield "Measured", measured(one.measured)
    if one.predicted:
        yield "Predicted", predicted(one.predicted)
    if one.progress and not one.is_final:
        yield "Progress", stage(one).words
    if one.problem:
        yield "Problem", f"{one.problem.message} ({one.problem.code})"
        if one.problem.remedy:
            yield "What to do", one.problem.remedy
    if one.state == "completed":
        yield "Cost", summary(one).partition("; ")[2]
        if wrong := off(one):
            yield "Off by", f"{wrong} (above zero: more was predicted)"
    yield from _verdict(one)
    yield from _kept_copies(one)
    yield "Steps", ", ".join(_steps(one)) or "none begun"
    for sentence in one.explanation:
        yield "Because", sentence
    yield "Begun", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if one.finished_at:
        yield "Ended", f"{one.finished_at:%Y-%m-%d %H:%M:%S} UTC"


def _waits(one: Migration) -> Iterator[tuple[str, str]]:
    if one.not_before is None or one.began_at or one.is_final:
        return
    until = f"{one.not_before:%Y-%m-%d %H:%M:%S} UTC"
    if not one.waits_for_its_time:
        yield "Waits until", until
        return
    yield "Waits until", f"{until}; {one.vm_name} is free until then, and where and how it goes is decided anew"
    if one.held_up:
        yield "Held up", f"{one.held_up.message} (since {one.held_up.at:%Y-%m-%d %H:%M:%S} UTC)"
        if one.held_up.remedy:
            yield "What to do", one.held_up.remedy


def _verdict(one: Migration) -> Iterator[tuple[str, str]]:
    if one.verdict is None:
        return
    yield "Verdict", one.verdict.outcome.replace("_", " ")
    for check in one.verdict.checks:
        yield check.name.replace("_", " ").capitalize(), f"{check.outcome.replace('_', ' ')}: {check.evidence}"


def _kept_copies(one: Migration) -> Iterator[tuple[str, str]]:
    kept = one.kept_copies
    if kept is None:
        return
    if kept.discarded_at is not None:
        yield "Kept copies", f"deleted on {kept.node} {kept.discarded_at:%Y-%m-%d %H:%M:%S} UTC by {kept.discarded_by}"
        return
    pools = {disk.volume_id: disk.from_pool for disk in one.disks}
    for volume_id in kept.volume_ids:
        pool = f"pool {pools[volume_id]}" if pools.get(volume_id) else "a pool that is no more"
        yield "Kept copy", f"on {kept.node}, volume {volume_id} in {pool}"
    if one.is_final:
        yield "What to do", f"once they are of no use: novacron migration discard-copies {one.id}"


def _goals(one: Migration) -> str:
    from novacron.cli.goal_options import words
    from novacron.client.migrations import Goals

    return words(Goals(**{field: getattr(one, field) for field in Goals.__struct_fields__}))


def _steps(one: Migration) -> Iterator[str]:
    for step in one.steps_begun:
        if step in one.steps_undone:
            yield f"{step} (undone)"
        else:
            yield step if step in one.steps_done else f"{step} (under way)"
