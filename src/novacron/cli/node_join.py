"""`novacron node token create` and `node revoke`: let a node in, and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import TIME, asks, confirm, confirms, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.nodes import NodeToken


@click.group()
def token() -> None:
    """Let nodes join the cluster, each by a token of its own."""


@token.command()
@click.option("--node", metavar="NAME", help="Only for this node, which may be known already; default: any new one.")
@click.option("--lasts", type=TIME, metavar="TIME", default="10m", show_default=True, help="How long it may be used.")
@prints
@asks
def create(session: Session, node: str | None, lasts: float) -> None:
    """Make a token with which one node joins, once. It is printed this once and kept nowhere.

    \b
    (umask 077; novacron node token create > token), then on the new host:
    novacron agent join https://server:8470 --token-file token --node-name node-4 --state-dir /var/lib/novacron
    """
    from novacron.client import nodes

    with session.connect() as nova:
        made = nova.do(nodes.create_token(nodes.NodeTokenCreate(node=node, lasts_s=round(lasts))))
    session.printer.done(made, made.token, _secret)


@click.command()
@click.argument("node", metavar="NODE", shell_complete=names("nodes"))
@confirms
@asks
def revoke(session: Session, node: str, yes: bool) -> None:
    """Honour a node's certificates no more: its line ends at once, its VMs run on. It comes back with a new token."""
    from novacron.cli import safe
    from novacron.client import nodes

    confirm(f"Revoke the certificates of node {safe.line(node)}?", yes=yes)
    with session.connect() as nova:
        gone = nova.do(nodes.revoke(node))
    click.echo(safe.line(f"{gone.node}: revoked"))


def _secret(one: NodeToken) -> str:
    return one.token
