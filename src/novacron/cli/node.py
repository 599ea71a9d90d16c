"""`novacron node`: look after the hosts that run VMs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.node_cpu import cpu_baseline
from novacron.cli.node_drain import bring_back, drain
from novacron.cli.node_fence import confirm_off, fence_device, hold
from novacron.cli.node_join import revoke, token
from novacron.cli.node_link import links, probe_link
from novacron.cli.options import asks, confirm, confirms, prints, selects
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.nodes import Node

STATES = ("joining", "up", "cordoned", "draining", "suspect", "fencing", "fenced", "down")
NODE = click.argument("node", metavar="NODE", shell_complete=names("nodes"))


@click.group()
def node() -> None:
    """Look after the hosts that run VMs. NODE is a name or an id; `node token` lets one join."""


@node.command("list")
@selects
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@prints
@asks
def list_nodes(session: Session, selector: tuple[str, ...], state: str | None) -> None:
    """List nodes, oldest first."""
    from novacron.client import nodes

    with session.connect() as nova:
        session.printer.many(nova.each(nodes.search(labels=selector, state=state or "")), _columns(), _name)


@node.command()
@NODE
@prints
@asks
def show(session: Session, node: str) -> None:
    """Show one node: what it has, what it uses, what it can do."""
    from novacron.client import nodes

    with session.connect() as nova:
        session.printer.one(nova.do(nodes.get(node)), _details, _name)


@node.command()
@NODE
@prints
@asks
def cordon(session: Session, node: str) -> None:
    """Place no new VM on a node; those that run go on running."""
    _set_cordoned(session, node, True)


@node.command()
@NODE
@prints
@asks
def uncordon(session: Session, node: str) -> None:
    """Let a node take new VMs again."""
    _set_cordoned(session, node, False)


@node.command()
@NODE
@click.argument("changes", metavar="KEY=VALUE|KEY-…", nargs=-1, required=True)
@prints
@asks
def label(session: Session, node: str, changes: tuple[str, ...]) -> None:
    """Label a node: KEY=VALUE adds or replaces, KEY- takes away."""
    from novacron.cli.edit import edit
    from novacron.cli.vm_spec import merged
    from novacron.client import nodes

    pairs, gone = _label_changes(changes)
    with session.connect() as nova:
        changed = edit(
            nova,
            nodes.get(node),
            lambda now: nodes.update(
                node, nodes.NodeUpdate(labels=merged(now.labels, pairs, gone)), revision=now.revision
            ),
        )
    session.printer.done(changed, f"{changed.name}: {_labels(changed)}", _name)


@node.command()
@NODE
@click.argument("changes", metavar="KEY[=VALUE][:EFFECT]|KEY-…", nargs=-1, required=True)
@prints
@asks
def taint(session: Session, node: str, changes: tuple[str, ...]) -> None:
    """Keep VMs off a node that do not tolerate it; those that run there go on running. KEY- takes a taint away.

    EFFECT is refuse (the usual one) or avoid: only where there is no other choice.

    
    novacron node taint node-1 gpu=a100 old:avoid
    novacron node taint node-1 gpu-
    """
    from novacron.cli.edit import edit
    from novacron.cli.placement_options import read_taints
    from novacron.client import nodes

    taints, gone = read_taints(changes)
    replaced = {*gone, *(one.key for one in taints)}
    with session.connect() as nova:
        changed = edit(
            nova,
            nodes.get(node),
            lambda now: nodes.update(
                node,
                nodes.NodeUpdate(taints=[*(one for one in now.taints if one.key not in replaced), *taints]),
                revision=now.revision,
            ),
        )
    session.printer.done(changed, f"{changed.name}: {_taints(changed)}", _name)


@node.command()
@NODE
@confirms
@asks
def delete(session: Session, node: str, yes: bool) -> None:
    """Forget a node that is down and owns no VM. Its certificates are revoked with that."""
    from novacron.cli import safe
    from novacron.client import nodes

    confirm(f"Forget node {safe.line(node)}?", yes=yes)
    with session.connect() as nova:
        nova.do(nodes.delete(node))
    click.echo(safe.line(f"{node}: forgotten"))


node.add_command(cpu_baseline)
node.add_command(probe_link)
node.add_command(links)
node.add_command(drain)
node.add_command(bring_back)
node.add_command(fence_device)
node.add_command(confirm_off)
node.add_command(hold)
node.add_command(token)
node.add_command(revoke)


def _set_cordoned(session: Session, ref: str, cordoned: bool) -> None:
    from novacron.client import nodes

    with session.connect() as nova:
        changed = nova.do(nodes.update(ref, nodes.NodeUpdate(cordoned=cordoned)))
    session.printer.done(changed, f"{changed.name}: {'cordoned' if changed.cordoned else changed.state}", _name)


def _label_changes(changes: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    pairs, gone = [], []
    for change in changes:
        key, separator, value = change.partition("=")
        if separator and key:
            pairs.append((key, value))
        elif change.endswith("-") and len(change) > 1:
            gone.append(change.removesuffix("-"))
        else:
            raise click.BadParameter(f"{change!r} is neither KEY=VALUE nor KEY-", param_hint="KEY=VALUE|KEY-")
    return pairs, gone


def _name(one: Node) -> str:
    return one.name


def _labels(one: Node) -> str:
    from novacron.cli.vm_show import labels

    return labels(one.labels) or "no labels"


def _taints(one: Node) -> str:
    from novacron.cli.placement_options import taint_words

    return ", ".join(taint_words(taint) for taint in one.taints) or "no taints"


def _state(one: Node) -> str:
    """Cordoned is a wish kept beside the state; people read one word."""
    return "cordoned" if one.cordoned and one.state == "up" else one.state


def _accelerators(one: Node) -> str:
    drivers = one.facts.drivers if one.facts else []
    return ", ".join(driver.accelerator.name for driver in drivers if driver.accelerator) or "-"


def _columns() -> list[Column[Node]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("STATE", _state),
        Column("VMS", lambda one: str(one.vm_count)),
        Column("CPUS", lambda one: str(one.facts.cpu_count) if one.facts else "-"),
        Column("MEMORY", lambda one: amounts.size(one.facts.memory_mib << 20) if one.facts else "-"),
        Column("COMMITTED", lambda one: amounts.size(one.memory_committed_mib << 20)),
        Column("ACCEL", _accelerators),
        Column("HEARD", lambda one: "-" if one.heard_ago_s is None else f"{amounts.seconds(one.heard_ago_s)} ago"),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("LOAD", lambda one: f"{one.usage.load_1m:.2f}" if one.usage else "-", wide=True),
        Column("REASON", lambda one: one.state_reason or "-", wide=True),
        Column("LABELS", _labels, wide=True),
        Column("TAINTS", _taints, wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Node) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts

    yield "Name", one.name
    yield "Id", one.id
    yield "State", _state(one) + (f": {one.state_reason}" if one.state_reason else "")
    yield "Since", f"{one.state_since:%Y-%m-%d %H:%M:%S} UTC"
    if one.heard_ago_s is not None:
        yield "Heard", f"{amounts.seconds(one.heard_ago_s)} ago"
    if one.fence_class is not None:
        yield "Fence class", f"{one.fence_class}, epoch {one.epoch}"
    yield "Labels", _labels(one)
    if one.taints:
        yield "Taints", _taints(one)
    yield "VMs", f"{one.vm_count}, {amounts.size(one.memory_committed_mib << 20)} of memory committed"
    if one.facts:
        yield "Host", f"{one.facts.hostname}, kernel {one.facts.kernel}, {one.facts.architecture}"
        yield "CPU", f"{one.facts.cpu_count} x {one.facts.cpu_model}"
        yield "Memory", amounts.size(one.facts.memory_mib << 20)
        yield "Bridges", ", ".join(one.facts.bridges) or "none"
        yield "Agent", one.facts.agent_version + ("" if one.facts.privileged else " (not root)")
        yield "Watchdog", one.facts.watchdog or "none is set"
        yield "Streams", one.facts.migration_address or "not received"
        spans = "overlay" in one.facts.abilities and one.facts.tunnel_address
        yield "Networks", f"spanned from {one.facts.tunnel_address}" if spans else "none spanned"
        for driver in one.facts.drivers:
            yield "Driver", f"{driver.name} {driver.version}"
            if driver.accelerator:
                yield "Accelerator", f"{driver.accelerator.name}: {driver.accelerator.reason}"
    if one.usage:
        yield "Free", f"{amounts.size(one.usage.memory_available_mib << 20)} memory, load {one.usage.load_1m:.2f}"
        yield "Pool", f"{amounts.size(one.usage.pool_free_bytes)} free of {amounts.size(one.usage.pool_size_bytes)}"
