"""`novacron server list`: which servers there are, and which of them leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from novacron.cli.options import asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.servers import Server


@click.command("list")
@prints
@asks
def list_servers(session: Session) -> None:
    """List the servers of the cluster, as the one that answers sees them."""
    from novacron.client import servers

    with session.connect() as nova:
        session.printer.many(nova.each(servers.search()), _columns(), lambda one: one.name)


def _columns() -> list[Column[Server]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("STATE", lambda one: one.state),
        Column("LEADS", lambda one: "-" if one.leads_since is None else f"for {amounts.age(one.leads_since, now)}"),
        Column("TERM", lambda one: "-" if one.term is None else str(one.term)),
        Column("SEEN", lambda one: f"{amounts.seconds(one.seen_ago_s)} ago"),
        Column("VERSION", lambda one: one.version),
        Column("AGE", lambda one: amounts.age(one.started_at, now)),
        Column("ADDRESS", lambda one: one.address or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]
