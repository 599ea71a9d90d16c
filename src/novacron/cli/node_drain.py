"""`novacron node drain` and `bring-back`: empty a node for maintenance, and fill it again."""

from __future__ import annotations

from typing import Any

import click

from novacron.cli.bulk_options import how, says_how
from novacron.cli.complete import names
from novacron.cli.options import asks, prints, waits
from novacron.cli.session import Session

NODE = click.argument("node", metavar="NODE", shell_complete=names("nodes"))
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say who would go where and when, and who cannot.")


@click.command()
@NODE
@says_how
@DRY_RUN
@waits("24h")
@prints
@asks
def drain(session: Session, node: str, dry_run: bool, wait: bool, timeout_s: float, **given: Any) -> None:
    """Empty a node for maintenance: nothing new is placed on it, and all its VMs go elsewhere, stopped ones too.

    What cannot go is listed with the reasons and holds up no other. The node stays cordoned until `bring-back` or
    `uncordon`.

    \b
    novacron node drain node-1 --dry-run
    novacron node drain node-1 --budget 200MiB/s --wait
    """
    from novacron.cli.bulk_migration import begin
    from novacron.client.bulk_migrations import BulkMigrationCreate

    wish = BulkMigrationCreate(drain=node, **how(given))
    begin(session, wish, dry_run=dry_run, wait=wait, timeout_s=timeout_s)


@click.command("bring-back")
@NODE
@says_how
@DRY_RUN
@waits("24h")
@prints
@asks
def bring_back(session: Session, node: str, dry_run: bool, wait: bool, timeout_s: float, **given: Any) -> None:
    """Uncordon a node and move back what drains took away from it. What others have moved since stays where it is."""
    from novacron.cli.bulk_migration import begin
    from novacron.client.bulk_migrations import BulkMigrationCreate

    wish = BulkMigrationCreate(bring_back=node, **how(given))
    begin(session, wish, dry_run=dry_run, wait=wait, timeout_s=timeout_s)
