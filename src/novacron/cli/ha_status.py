"""`novacron ha status`: what high availability could do this moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.options import asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.fencing import HaNode, HaStatus


@click.group()
def ha() -> None:
    """See what becomes of VMs when nodes fail."""


@ha.command()
@prints
@asks
def status(session: Session) -> None:
    """Show who vouches by what, what brakes it, and whom the loss of each node would strand."""
    from novacron.client import fencing

    with session.connect() as nova:
        session.printer.one(nova.do(fencing.status()), _details, lambda _: "ha")


def _details(one: HaStatus) -> Iterator[tuple[str, str]]:
    classes = ", ".join(f"{count} x {name}" for name, count in sorted(one.by_fence_class.items()))
    yield "Fence classes", classes or "no nodes"
    yield "Fences", f"{one.recent_fences} of {one.fence_limit} in {one.fence_window_s:.0f} s"
    yield "Brake", one.brake.message if one.brake else "off: a silent node is fenced"
    whole = "the VMs of any one node can be restarted elsewhere"
    yield "If a node fails", whole if one.survives_any_node else "not everything comes back: see below"
    for node in one.nodes:
        yield node.node, "\n".join(_words(node))


def _words(node: HaNode) -> Iterator[str]:
    device = f", power by {node.fence_device}" if node.fence_device else ""
    proof = f", off by {node.proof}" if node.proof else ""
    yield f"{node.state}, {node.fence_class or 'takes no part'}{device}{proof}, {node.guarded} guarded VMs"
    if node.stranded:
        yield f"no room elsewhere for {', '.join(node.stranded)}"
    if node.unguaranteed:
        yield f"fence class is too low for {', '.join(node.unguaranteed)}"
