"""`novacron plan`: say beforehand what emptying or losing a node would mean."""

from __future__ import annotations

from typing import Any

import click

from novacron.cli.bulk_options import how, says_how
from novacron.cli.complete import names
from novacron.cli.options import asks, prints
from novacron.cli.session import Session

NODE = click.argument("node", metavar="NODE", shell_complete=names("nodes"))


@click.group()
def plan() -> None:
    """Say beforehand what emptying or losing a node would mean. Nothing changes; NODE is a name or an id."""


@plan.command()
@NODE
@says_how
@prints
@asks
def drain(session: Session, node: str, **given: Any) -> None:
    """Say who would go where and when if a node were drained: waves, total time, bottleneck, who cannot move and why.

    `-o json` keeps the plan; `novacron bulk-migration start --plan FILE` does just that.
    """
    from novacron.cli.bulk_show import show_plan
    from novacron.client import bulk_migrations

    with session.connect() as nova:
        found = nova.do(bulk_migrations.plan(bulk_migrations.BulkMigrationCreate(drain=node, **how(given))))
    show_plan(session, found)
    raise click.exceptions.Exit(1 if found.stays else 0)


@plan.command("node-loss")
@NODE
@prints
@asks
def node_loss(session: Session, node: str) -> None:
    """Say where the VMs of a node could be started again if it were gone, and who finds no room."""
    from novacron.cli.bulk_show import show_loss
    from novacron.client import bulk_migrations

    with session.connect() as nova:
        found = nova.do(bulk_migrations.node_loss(node))
    show_loss(session, found)
    raise click.exceptions.Exit(1 if found.no_room else 0)
