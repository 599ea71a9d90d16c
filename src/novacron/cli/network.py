"""`novacron network`: networks that span the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.networks import Network

MODES = ("isolated", "nat", "routed")
ADDRESSING = ("managed", "static", "none")
NETWORK = click.argument("network", metavar="NETWORK", shell_complete=names("networks"))


@click.group()
def network() -> None:
    """Make networks that span the nodes, for the cards of VMs. NETWORK is a name or an id."""


@network.command("list")
@selects
@prints
@asks
def list_networks(session: Session, selector: tuple[str, ...]) -> None:
    """List networks, oldest first."""
    from novacron.client import networks

    with session.connect() as nova:
        session.printer.many(nova.each(networks.search(labels=selector)), _columns(), _name)


@network.command()
@NETWORK
@prints
@asks
def show(session: Session, network: str) -> None:
    """Show one network."""
    from novacron.client import networks

    with session.connect() as nova:
        session.printer.one(nova.do(networks.get(network)), _details, _name)


@network.command()
@click.argument("name")
@click.option("--ipv4", metavar="SUBNET", default="", help="As in 10.20.0.0/24; its first address is the gateway's.")
@click.option("--ipv6", metavar="SUBNET", default="", help="A /64, as in fd20::/64.")
@click.option("--mode", type=click.Choice(MODES), help="How it reaches the outside; default isolated: not at all.")
@click.option("--addressing", type=click.Choice(ADDRESSING),
              help="How guests get their addresses; default managed: by DHCP.")  # fmt: skip
@click.option("--mtu", type=click.IntRange(576, 9166), help="Of the guests' cards; default 1450.")
@click.option("--dns", metavar="ADDRESS", multiple=True, help="A resolver told to guests. Repeatable.")
@click.option("--vni", type=click.IntRange(1, (1 << 24) - 1), help="Its VXLAN number; default: chosen.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(session: Session, labels: tuple[tuple[str, str], ...], **given: Any) -> None:
    """Make a network.

    \b
    novacron network create web --ipv4 10.20.0.0/24 --mode nat --dns 9.9.9.9
    novacron vm create web-1 --image debian-12 --nic net=web
    """
    from novacron.client import networks

    said = {name: value for name, value in given.items() if value not in (None, "", ())}
    with session.connect() as nova:
        made = nova.do(networks.create(networks.NetworkCreate(labels=dict(labels), **said)))
    session.printer.done(made, f"{made.name}: {_subnets(made)}, {made.mode}, VNI {made.vni}", _name)


@network.command()
@NETWORK
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--mode", type=click.Choice(MODES), help="How it reaches the outside from now on.")
@click.option("--dns", metavar="ADDRESS", multiple=True, help="The resolvers told to guests: all of them. Repeatable.")
@click.option("--no-dns", is_flag=True, help="Tell guests of no resolver.")
@click.option("--ipv4", metavar="SUBNET", help="Another subnet; only while no card is on it.")
@click.option("--ipv6", metavar="SUBNET", help="Another subnet; only while no card is on it.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take a label away. Repeatable.")
@click.option("--description", metavar="TEXT", help="For people.")
@prints
@asks
def update(
    session: Session,
    network: str,
    dns: tuple[str, ...],
    no_dns: bool,
    labels: tuple[tuple[str, str], ...],
    remove_label: tuple[str, ...],
    **given: Any,
) -> None:
    """Change a network; nodes follow at once."""
    from novacron.cli.edit import edit
    from novacron.cli.vm_spec import merged
    from novacron.client import networks

    said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if dns or no_dns:
        said["dns"] = dns
    relabel = bool(labels or remove_label)
    if not said and not relabel:
        raise click.UsageError("nothing to change was given")
    with session.connect() as nova:
        changed = edit(
            nova,
            networks.get(network),
            lambda now: networks.update(
                network,
                networks.NetworkUpdate(
                    **said | ({"labels": merged(now.labels, labels, remove_label)} if relabel else {})
                ),
                revision=now.revision,
            ),
        )
    session.printer.done(changed, f"{changed.name}: {_subnets(changed)}, {changed.mode}", _name)


@network.command()
@NETWORK
@confirms
@asks
def delete(session: Session, network: str, yes: bool) -> None:
    """Delete a network that no card is on."""
    from novacron.cli import safe
    from novacron.client import networks

    confirm(f"Delete network {safe.line(network)}?", yes=yes)
    with session.connect() as nova:
        nova.do(networks.delete(network))
    click.echo(safe.line(f"{network}: deleted"))


def _name(one: Network) -> str:
    return one.name


def _subnets(one: Network) -> str:
    return " and ".join(subnet for subnet in (one.ipv4, one.ipv6) if subnet) or "no subnet"


def _columns() -> list[Column[Network]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column
    from novacron.cli.vm_show import labels

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("IPV4", lambda one: one.ipv4 or "-"),
        Column("IPV6", lambda one: one.ipv6 or "-"),
        Column("MODE", lambda one: one.mode),
        Column("ADDRESSING", lambda one: one.addressing),
        Column("VNI", lambda one: str(one.vni)),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("MTU", lambda one: str(one.mtu), wide=True),
        Column("DNS", lambda one: ", ".join(one.dns) or "-", wide=True),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Network) -> Iterator[tuple[str, str]]:
    from novacron.cli.vm_show import labels

    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "Subnets", _subnets(one)
    yield "Gateways", ", ".join(one.gateways) or "none"
    yield "Mode", one.mode
    yield "Addressing", one.addressing
    yield "Resolvers", ", ".join(one.dns) or "none"
    yield "MTU", str(one.mtu)
    yield "VNI", str(one.vni)
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
