"""`novacron node probe-link` and `links`: what the network between two nodes carries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import RATE, asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.nodes import Link


@click.command("probe-link")
@click.argument("source", metavar="NODE", shell_complete=names("nodes"))
@click.argument("target", metavar="OTHER", shell_complete=names("nodes"))
@click.option("--bandwidth", type=RATE, metavar="RATE", default=0, help="Take no more than that; usual: as it goes.")
@prints
@asks
def probe_link(session: Session, source: str, target: str, bandwidth: int) -> None:
    """Measure the link from one node to another: a burst of at most 32 MiB and a second, encrypted as streams are.

    What is found is used for plans. Nothing is measured while a migration streams from or to one of the two.
    """
    from novacron.client import nodes

    with session.connect() as nova:
        found = nova.do(nodes.probe_link(source, target, bandwidth_bytes_per_s=bandwidth))
    session.printer.one(found, _details, _name)


@click.command()
@click.argument("node", metavar="NODE", shell_complete=names("nodes"))
@prints
@asks
def links(session: Session, node: str) -> None:
    """List the links from and to a node that were measured for themselves."""
    from novacron.client import nodes

    with session.connect() as nova:
        session.printer.many(iter(nova.do(nodes.links(node)).items), _columns(), _name)


def _name(one: Link) -> str:
    return f"{one.source_node} {one.target_node}"


def _rate(one: Link) -> str:
    from novacron.cli import amounts

    if one.rate_bytes_per_s is None:
        return "unknown"
    return amounts.rate(round(one.rate_bytes_per_s)) + (" or more" if one.is_capped else "")


def _round_trip(one: Link) -> str:
    return "-" if one.rtt_ms is None else f"{one.rtt_ms:.1f} ms"


def _age(one: Link) -> str:
    from novacron.cli import amounts

    return "-" if one.age_s is None else f"{amounts.seconds(one.age_s)} ago"


def _columns() -> list[Column[Link]]:
    from novacron.cli.output import Column

    return [
        Column("FROM", lambda one: one.source_node),
        Column("TO", lambda one: one.target_node),
        Column("RATE", _rate),
        Column("ROUND TRIP", _round_trip),
        Column("MEASURED", _age),
    ]


def _details(one: Link) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts

    yield "Link", f"from {one.source_node} to {one.target_node}"
    yield "Rate", _rate(one)
    yield "Round trip", _round_trip(one)
    if one.sent_bytes:
        yield "Sent", amounts.size(one.sent_bytes)
    if one.why:
        yield "Why", one.why
