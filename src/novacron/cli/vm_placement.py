"""`novacron vm placement`: where a VM could be started, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.placement_plans import NodeFit, PlacementPlan


@click.command()
@click.argument("vm", metavar="VM", shell_complete=names("vms"))
@prints
@asks
def placement(session: Session, vm: str) -> None:
    """Show for every node whether a VM could be started there now, every reason why not, and how good it is.

    \b
    novacron vm placement web-1
    """
    from novacron.client import placement_plans

    with session.connect() as nova:
        show(session, nova.do(placement_plans.get(vm)))


def show(session: Session, plan: PlacementPlan) -> None:
    """For people: a line a node, then why not; for programs: all of it."""
    from novacron.cli import safe

    printer = session.printer
    if not printer.is_for_people:
        printer.one(plan, lambda _: (), lambda one: one.chosen or "-")
        return
    printer.many(plan.nodes, _columns(plan), lambda node: node.node)
    for line in _sentences(plan):
        click.echo(safe.line(line))


def _columns(plan: PlacementPlan) -> list[Column[NodeFit]]:
    from novacron.cli.output import Column

    return [
        Column("NODE", lambda one: one.node),
        Column("ANSWER", lambda one: _answer(plan, one)),
        Column("SCORE", lambda one: "-" if one.score is None else f"{one.score:.3f}"),
        Column("MADE OF", lambda one: ", ".join(f"{name} {part:.3f}" for name, part in one.parts.items()) or "-"),
    ]


def _answer(plan: PlacementPlan, node: NodeFit) -> str:
    answer = "cannot" if not node.can else "would be taken" if node.node == plan.chosen else "can"
    return f"{answer} (is here)" if node.is_here else answer


def _sentences(plan: PlacementPlan) -> Iterator[str]:
    yield f"policy {plan.policy}: {plan.vm} would go to {plan.chosen}" if plan.chosen else f"no node can take {plan.vm}"
    for node in plan.nodes:
        for reason in node.reasons:
            words = reason.message.removeprefix(f"{node.node}: ")
            yield f"why not {node.node}: {words}" + (f"; try: {reason.remedy}" if reason.remedy else "")
