"""A migration followed to its end: the bar, the last line, and what is said when it did not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts
from novacron.cli.progress import Stage, progress
from novacron.errors import MigrationFailed, Reason

if TYPE_CHECKING:
    from novacron.cli.session import Session
    from novacron.client.migrations import Figures, Migration
    from novacron.client.sync import Client


def follow(session: Session, nova: Client, migration_id: str, timeout_s: float) -> None:
    """Show progress, then what it cost.

    :raise MigrationFailed: it ended, and the VM is not on its target.
    :raise DeadlineExceeded: it goes on, unwatched.
    """
    with progress() as show:
        try:
            ended = nova.wait_migration(migration_id, deadline_s=timeout_s, on_update=lambda one: show(stage(one)))
        except KeyboardInterrupt:
            click.echo(f"the migration goes on; novacron migration watch {migration_id}", err=True)
            raise
    if ended.state == "completed" or not session.printer.is_for_people:
        session.printer.done(ended, summary(ended), name)
    if ended.state != "completed":
        raise failure(ended)


def say_begun(session: Session, migration: Migration) -> None:
    """What is said without --wait."""
    waits = f" from {migration.not_before:%Y-%m-%d %H:%M} UTC on" if migration.not_before else ""
    waits += ", free until then" if migration.waits_for_its_time else ""
    sentence = (
        f"{migration.vm_name}: moving from {migration.source_node} to {migration.target_node}{waits}; "
        f"novacron migration watch {migration.id}"
    )
    session.printer.done(migration, sentence, name)


def name(migration: Migration) -> str:
    """What `-o name` prints: migrations have an id alone."""
    return migration.id


def stage(migration: Migration) -> Stage:
    """Where it is, as a bar."""
    title = f"{migration.vm_name}: {migration.source_node} -> {migration.target_node} {migration.state}"
    now = migration.progress
    if now is None:
        return Stage(title)
    words = [f"{amounts.size(now.transferred_bytes)} sent, {amounts.size(now.remaining_bytes)} left"]
    if now.rate_bytes_per_s:
        words.append(amounts.rate(now.rate_bytes_per_s))
    words.append(f"round {now.iteration}")
    if now.predicted_end is not None:
        words.append(f"about {amounts.seconds(max(0.0, (now.predicted_end - now.at).total_seconds()))} to go")
    done = max(0, now.total_bytes - now.remaining_bytes)
    return Stage(title, ", ".join(words), float(done), float(now.total_bytes) or None)


def summary(migration: Migration) -> str:
    """What it cost, in one line; what was not measured is not mentioned."""
    return (
        f"{migration.vm_name}: moved from {migration.source_node} to {migration.target_node}; "
        + ", ".join(_figures(migration))
    ).removesuffix("; ")


def _figures(migration: Migration) -> Iterator[str]:
    measured = migration.figures
    if measured.total_ms is not None:
        yield f"total {amounts.milliseconds(measured.total_ms)}"
    if measured.bytes_transferred is not None:
        yield f"{amounts.size(measured.bytes_transferred)} sent{_packed(measured)}"
    if measured.disk_bytes:
        yield f"{amounts.size(measured.disk_bytes)} of disks copied"
    if measured.iterations is not None:
        yield f"{measured.iterations} rounds"
    if measured.downtime_qemu_ms is not None:
        yield f"downtime {amounts.milliseconds(measured.downtime_qemu_ms)} by QEMU's count"
    if measured.downtime_stopped_ms is not None:
        yield f"{amounts.milliseconds(measured.downtime_stopped_ms)} from stop to resume"
    if measured.network_gap_ms is not None:
        yield f"{amounts.milliseconds(measured.network_gap_ms)} off the network, as {measured.network_checked_by} saw"


def _packed(measured: Figures) -> str:
    """What the stream proxies made of it."""
    if not measured.stream_bytes:
        return ""
    held = f", {measured.pages_held} pages held there" if measured.pages_held else ""
    return f" for {amounts.size(measured.stream_bytes)} through the stream proxies{held}"


def failure(migration: Migration) -> MigrationFailed:
    """How it ended, as an error that says where the VM is."""
    problem = migration.problem
    where = {
        "cancelled": f"it runs on {migration.source_node} as before",
        "rolled_back": f"it runs on {migration.source_node} as before",
    }.get(migration.state, "where it is must be looked at")
    if not migration.steps_begun:
        where = "nothing of it had begun: the VM is as it was"
    why = f": {problem.message}" if problem else ""
    reasons = [Reason(problem.code, problem.message, migration.vm_name, problem.remedy)] if problem else []
    return MigrationFailed(f"the migration of {migration.vm_name} ended {migration.state}{why}; {where}", reasons)
