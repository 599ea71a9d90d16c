"""How bulk migrations and their plans are printed, and how one is followed to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts, safe
from novacron.errors import MigrationFailed, Reason

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.cli.progress import Stage
    from novacron.cli.session import Session
    from novacron.client.bulk_migrations import BulkMigration, BulkMigrationPlan, Entry, Forecast, NodeLossPlan, Restart
    from novacron.client.sync import Client

PURPOSES = {"move": "move", "drain": "drain", "bring_back": "bring back"}
LEFT = ("failed", "stays")


def name(bulk: BulkMigration) -> str:
    """What `-o name` prints: bulk migrations have an id alone."""
    return bulk.id


def purpose(one: BulkMigration | BulkMigrationPlan) -> str:
    """What for, in words."""
    return f"{PURPOSES.get(one.purpose, one.purpose)} {one.node or ''}".rstrip()


def show_plan(session: Session, plan: BulkMigrationPlan) -> None:
    """For people: a line a VM, then what is told of all; for programs: all of it."""
    printer = session.printer
    if not printer.is_for_people:
        printer.one(plan, lambda _: (), purpose)
        return
    printer.many(in_order(plan.entries), entry_columns(planned=True), lambda entry: entry.vm)
    for line in (*why(plan.entries), *forecast(plan.forecast), *_stays(plan)):
        click.echo(safe.line(line))


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """As they begin; those without a place last."""
    return sorted(entries, key=lambda one: (one.wave == 0, one.starts_at_s, one.wave, one.vm))


def entry_columns(*, planned: bool) -> list[Column[Entry]]:
    """planned: nothing has begun."""
    from novacron.cli.output import Column

    first: list[Column[Entry]] = [
        Column("WAVE", lambda one: str(one.wave) if one.wave else "-"),
        Column("VM", lambda one: one.vm),
        Column("FROM", lambda one: one.source_node),
        Column("TO", lambda one: one.target_node or "-"),
        Column("BEGINS", lambda one: f"+{amounts.seconds(one.starts_at_s)}" if one.wave else "-"),
        Column("TAKES", lambda one: amounts.seconds(one.takes_s) if one.wave else "-"),
        Column("PRIORITY", lambda one: str(one.priority), wide=True),
    ]
    state: Column[Entry] = Column("STATE", lambda one: one.state)
    attempts: Column[Entry] = Column("TRIES", lambda one: str(len(one.migration_ids)))
    return [*first, state] if planned else [*first, state, attempts]


def why(entries: Sequence[Entry]) -> Iterator[str]:
    """Why those that are not moved are not, each reason once."""
    for one in entries:
        for words in dict.fromkeys(
            reason.message + (f"; try: {reason.remedy}" if reason.remedy else "") for reason in one.reasons
        ):
            yield f"{one.vm}: {words}"


def forecast(told: Forecast) -> Iterator[str]:
    """What the plan expects, in sentences."""
    yield f"{told.waves} waves, {amounts.seconds(told.total_s)} in all"
    if told.share_bytes_per_s:
        yield f"each move gets {amounts.rate(told.share_bytes_per_s)} of the budget"
    if told.busiest:
        first = told.busiest[0]
        what = "node" if len(first.nodes) == 1 else "the link between"
        where = " and ".join(first.nodes)
        yield f"bottleneck: {what} {where}, busy for {amounts.seconds(first.busy_s)} with {first.moves} moves"
    for reason, span_s in sorted(told.held_back_s.items(), key=lambda one: -one[1]):
        yield f"waited for: {reason}: {amounts.seconds(span_s)} of all VMs together"


def _stays(plan: BulkMigrationPlan) -> Iterator[str]:
    if plan.stays:
        yield f"{plan.stays} of {len(plan.entries)} VMs would stay where they are"


def details(one: BulkMigration) -> Iterator[tuple[str, str]]:
    """Everything but the entries."""
    yield "Id", one.id
    yield "Purpose", purpose(one)
    yield "State", one.state
    yield "VMs", counts(one) or "none"
    for line in forecast(one.forecast):
        yield "Planned", line
    if one.replans:
        yield "Planned anew", f"{one.replans} times"
    for sentence in one.explanation:
        yield "Because", sentence
    yield "Begun", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if one.finished_at:
        yield "Ended", f"{one.finished_at:%Y-%m-%d %H:%M:%S} UTC"


def counts(one: BulkMigration) -> str:
    """How many VMs stand where."""
    return ", ".join(f"{number} {state}" for state, number in sorted(one.counts.items()))


def say_begun(session: Session, bulk: BulkMigration) -> None:
    """What is said without --wait."""
    told = f"{purpose(bulk)}: {counts(bulk) or 'nothing to move'}; novacron bulk-migration watch {bulk.id}"
    session.printer.done(bulk, told, name)


def follow(session: Session, nova: Client, bulk_id: str, timeout_s: float) -> None:
    """Show progress, then how it ended.

    :raise MigrationFailed: it ended, and VMs were left where they were.
    :raise DeadlineExceeded: it goes on, unwatched.
    """
    from novacron.cli.progress import progress

    with progress() as show:
        try:
            ended = nova.wait_bulk_migration(bulk_id, deadline_s=timeout_s, on_update=lambda one: show(_stage(one)))
        except KeyboardInterrupt:
            click.echo(f"it goes on; novacron bulk-migration watch {bulk_id}", err=True)
            raise
    if ended.state == "completed" or not session.printer.is_for_people:
        session.printer.done(ended, f"{purpose(ended)}: {counts(ended) or 'there was nothing to move'}", name)
    if ended.state != "completed":
        raise _failure(ended)


def _stage(bulk: BulkMigration) -> Stage:
    from novacron.cli.progress import Stage

    total = sum(bulk.counts.values())
    left = bulk.counts.get("waiting", 0) + bulk.counts.get("moving", 0)
    return Stage(f"{purpose(bulk)} {bulk.state}", counts(bulk), float(total - left), float(total) or None)


def _failure(bulk: BulkMigration) -> MigrationFailed:
    reasons = [
        Reason(reason.code, reason.message, entry.vm, reason.remedy)
        for entry in bulk.entries or []
        if entry.state in LEFT
        for reason in entry.reasons[:1]
    ]
    return MigrationFailed(f"{purpose(bulk)} ended {bulk.state}: {counts(bulk)}", reasons)


def show_loss(session: Session, plan: NodeLossPlan) -> None:
    """For people: a line a VM, then who finds no room; for programs: all of it."""
    printer = session.printer
    if not printer.is_for_people:
        printer.one(plan, lambda _: (), lambda one: one.node)
        return
    printer.many(plan.restarts, _restart_columns(), lambda one: one.vm)
    for one in plan.restarts:
        for reason in one.reasons:
            click.echo(safe.line(f"{one.vm}: {reason.message}"))
    placed = len(plan.restarts) - plan.no_room
    told = f"without {plan.node}: {placed} could be started elsewhere, {plan.no_room} find no room"
    click.echo(safe.line(told + (f", {plan.at_rest} do not run" if plan.at_rest else "")))


def _restart_columns() -> list[Column[Restart]]:
    from novacron.cli.output import Column

    return [
        Column("VM", lambda one: one.vm),
        Column("PRIORITY", lambda one: str(one.priority)),
        Column("MEMORY", lambda one: amounts.size(one.memory_mib << 20)),
        Column("WOULD RUN ON", lambda one: one.target_node or "-"),
    ]
