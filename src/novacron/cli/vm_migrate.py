"""`novacron vm migrate`: move a VM, or say what that would do and cost."""

from __future__ import annotations

from typing import Any

import click

from novacron.cli.complete import names
from novacron.cli.goal_options import goals_of, says_goals
from novacron.cli.options import MOMENT, PAIR, asks, prints, waits
from novacron.cli.session import Session

VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))


@click.command()
@VM
@click.option(
    "--to",
    "target_node",
    metavar="NODE",
    shell_complete=names("nodes"),
    help="Where to; default: the scheduler chooses.",
)
@click.option(
    "--kind", type=click.Choice(["cold", "warm", "live"]), help="Default: what reaches the goals, gentlest first."
)
@click.option(
    "--strategy", type=click.Choice(["precopy", "postcopy", "hybrid"]), help="Of a live move; default: likewise."
)
@click.option(
    "--policy", metavar="POLICY", shell_complete=names("migration_policies"), help="With the goals of this policy."
)
@click.option(
    "--pool", metavar="POOL", shell_complete=names("pools"), help="Where all its disks are to be after the move."
)
@click.option(
    "--disk-pool",
    "disk_pools",
    type=PAIR,
    metavar="VOLUME=POOL",
    multiple=True,
    help="The same for one of them. Repeatable.",
)
@says_goals
@click.option("--measure/--no-measure", default=None, help="Look first at what it writes; default: if a goal needs it.")
@click.option("--now", is_flag=True, default=None, help="Whatever the windows of policies say.")
@click.option("--starts-at", type=MOMENT, metavar="TIME", help="Not before then: 2026-01-02T22:00, else UTC is meant.")
@click.option("--priority", type=click.IntRange(0, 100), help="In line for its nodes; more goes first.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the migration. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Only say what it would do and cost, for every node.")
@waits("2h")
@prints
@asks
def migrate(session: Session, vm: str, dry_run: bool, wait: bool, timeout_s: float, **given: Any) -> None:
    """Move a VM to another node: while it runs, paused meanwhile (warm), or shut down here and booted there (cold).

    Disks that the other node does not see are copied while the VM runs, into the same pool there or the one you name.
    With --pool or --disk-pool and no --to only disks move, and the VM stays on its node.
    A VM that is stopped is given to the other node for its next start. What is asked for is kept to: a move that would
    not reach its goals by any way they allow is refused before anything moves.

    With --wait a bar shows what has been sent and what remains, and the last line what it cost.

    \b
    novacron vm migrate web-1 --dry-run
    novacron vm migrate web-1 --to node-2 --max-downtime-ms 50 --wait
    """
    from novacron.cli.follow import follow, say_begun
    from novacron.cli.plan_show import show
    from novacron.client import migrations

    said = ("target_node", "kind", "strategy", "policy", "pool", "measure", "now", "starts_at", "priority")
    chosen = {name: given[name] for name in said if given[name] is not None}
    chosen["disk_pools"] = dict(given["disk_pools"])
    wish = migrations.MigrationCreate(vm=vm, **chosen, **goals_of(given), labels=dict(given["labels"]))
    with session.connect() as nova:
        if dry_run:
            plan = nova.do(migrations.plan(wish))
            show(session, plan)
            raise click.exceptions.Exit(0 if plan.target_node else 1)
        begun = nova.do(migrations.create(wish))
        if wait:
            follow(session, nova, begun.id, timeout_s)
        else:
            say_begun(session, begun)
