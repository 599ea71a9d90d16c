"""`novacron bulk-migration`: move many VMs within limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.bulk_options import how, says_how, start_of
from novacron.cli.complete import names
from novacron.cli.options import FILE, PAIR, TIME, asks, prints, selects, waits
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.bulk_migrations import BulkMigration
    from novacron.client.call import Call

STATES = ("planned", "running", "paused", "cancelling", "cancelled", "completed", "completed_with_failures")
BULK = click.argument("bulk", metavar="BULK-MIGRATION")
TO = click.option("--to", "target_node", metavar="NODE", shell_complete=names("nodes"),
                  help="Where all go; default: the scheduler chooses for each.")  # fmt: skip


@click.group("bulk-migration")
def bulk_migration() -> None:
    """Move many VMs within limits. BULK-MIGRATION is an id; `node drain` empties a node, `plan` says beforehand.

    Moves begin by priority, as far as limits and room allow. One that fails is tried again, elsewhere if possible; a VM
    that cannot be moved holds up no other.
    """


@bulk_migration.command("list")
@selects
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@prints
@asks
def list_bulk_migrations(session: Session, selector: tuple[str, ...], state: str | None) -> None:
    """List bulk migrations, oldest first."""
    from novacron.cli.bulk_show import name
    from novacron.client import bulk_migrations

    with session.connect() as nova:
        found = nova.each(bulk_migrations.search(labels=selector, state=state or ""))
        session.printer.many(found, _columns(), name)


@bulk_migration.command()
@BULK
@prints
@asks
def show(session: Session, bulk: str) -> None:
    """Show one bulk migration, VM by VM: where it goes, how far it is, why it is not moved."""
    from novacron.cli import safe
    from novacron.cli.bulk_show import details, entry_columns, in_order, name, why
    from novacron.client import bulk_migrations

    with session.connect() as nova:
        found = nova.do(bulk_migrations.get(bulk))
    session.printer.one(found, details, name)
    if session.printer.is_for_people and found.entries:
        session.printer.many(in_order(found.entries), entry_columns(planned=False), lambda entry: entry.vm)
        for line in why(found.entries):
            click.echo(safe.line(line))


@bulk_migration.command()
@click.argument("vms", metavar="[VM]...", nargs=-1, shell_complete=names("vms"))
@click.option("--vms", "selector", type=PAIR, metavar="KEY=VALUE", multiple=True,
              help="All VMs with this label; an empty value: any value. Repeatable: all of them.")  # fmt: skip
@TO
@says_how
@click.option("--plan", type=FILE, metavar="FILE", help="Just what this plan says: one kept by `plan … -o json`.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the bulk migration.")
@click.option("--dry-run", is_flag=True, help="Only say what it would do: who goes where and when, and who cannot.")
@waits("24h")
@prints
@asks
def start(session: Session, vms: tuple[str, ...], selector: tuple[tuple[str, str], ...], target_node: str | None,
          plan: Path | None, labels: tuple[tuple[str, str], ...], dry_run: bool, wait: bool, timeout_s: float,
          **given: Any) -> None:  # fmt: skip
    """Move the VMs named, or all with a label.

    \b
    novacron bulk-migration start web-1 web-2 web-3 --to node-2 --wait
    novacron bulk-migration start --vms tier=web --budget 200MiB/s --max-concurrent 4 --dry-run
    novacron plan drain node-1 -o json > plan.json; novacron bulk-migration start --plan plan.json
    """
    from novacron.client.bulk_migrations import BulkMigrationCreate

    said = how(given)
    ways = [bool(vms), bool(selector), plan is not None]
    if sum(ways) != 1 or (plan is not None and (said or labels or target_node)):
        raise click.UsageError("give VMs, or --vms, or --plan alone")
    if plan is not None:
        wish = start_of(plan)
    else:
        wish = BulkMigrationCreate(
            vms=list(vms), selector=dict(selector), target_node=target_node, labels=dict(labels), **said
        )
    begin(session, wish, dry_run=dry_run, wait=wait, timeout_s=timeout_s)


def begin(session: Session, wish: Any, *, dry_run: bool, wait: bool, timeout_s: float) -> None:
    """Plan it, or begin it and say so, or follow it to its end."""
    from novacron.cli.bulk_show import follow, say_begun, show_plan
    from novacron.client import bulk_migrations

    with session.connect() as nova:
        if dry_run:
            plan = nova.do(bulk_migrations.plan(wish))
            show_plan(session, plan)
            raise click.exceptions.Exit(1 if plan.stays else 0)
        begun = nova.do(bulk_migrations.create(wish))
        if wait:
            follow(session, nova, begun.id, timeout_s)
        else:
            say_begun(session, begun)


@bulk_migration.command()
@BULK
@prints
@asks
def pause(session: Session, bulk: str) -> None:
    """Begin no more moves; those under way go on."""
    from novacron.client import bulk_migrations

    _steer(session, bulk_migrations.pause(bulk))


@bulk_migration.command()
@BULK
@prints
@asks
def resume(session: Session, bulk: str) -> None:
    """Go on after a pause."""
    from novacron.client import bulk_migrations

    _steer(session, bulk_migrations.resume(bulk))


@bulk_migration.command()
@BULK
@prints
@asks
def cancel(session: Session, bulk: str) -> None:
    """Begin nothing more and take back what can be; what has been moved stays where it is."""
    from novacron.client import bulk_migrations

    _steer(session, bulk_migrations.cancel(bulk))


@bulk_migration.command()
@BULK
@click.option("--timeout", "timeout_s", metavar="TIME", type=TIME, default="24h", show_default=True, help="How long.")
@prints
@asks
def watch(session: Session, bulk: str, timeout_s: float) -> None:
    """Show its progress until it ends, then how it ended."""
    from novacron.cli.bulk_show import follow

    with session.connect() as nova:
        follow(session, nova, bulk, timeout_s)


def _steer(session: Session, call: Call[BulkMigration]) -> None:
    from novacron.cli.bulk_show import counts, name, purpose

    with session.connect() as nova:
        asked = nova.do(call)
    session.printer.done(asked, f"{purpose(asked)}: {asked.state}; {counts(asked) or 'no VMs'}", name)


def _columns() -> list[Column[BulkMigration]]:
    from novacron.cli import amounts
    from novacron.cli.bulk_show import counts, purpose
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("ID", lambda one: one.id),
        Column("PURPOSE", purpose),
        Column("STATE", lambda one: one.state),
        Column("VMS", lambda one: counts(one) or "-"),
        Column("PLANNED", lambda one: amounts.seconds(one.forecast.total_s)),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("REPLANS", lambda one: str(one.replans), wide=True),
    ]
