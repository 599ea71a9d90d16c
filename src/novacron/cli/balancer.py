"""`novacron balancer`: whether VMs are moved by themselves, and what would be moved now and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.options import TIME, asks, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.balancer import Balancer, Move, Plan

MODES = ("off", "propose", "act")


@click.group()
def balancer() -> None:
    """Have VMs moved to where they had better be: by their rules, and by how much nodes are used.

    off: nothing is looked at; propose: `balancer show` says what would be moved, and why; act: that is done, too.
    """


@balancer.command()
@prints
@asks
def show(session: Session) -> None:
    """Show what would be moved now, why, what it costs, and why no more. Nothing is changed."""
    from novacron.cli import safe
    from novacron.client import balancer as calls

    with session.connect() as nova:
        settings, plan = nova.do(calls.get()), nova.do(calls.plan())
    printer = session.printer
    if not printer.is_for_people:
        printer.one(plan, lambda _: (), lambda one: "\n".join(move.vm for move in one.moves))
        return
    for line in _sentences(settings, plan):
        click.echo(safe.line(line))
    if plan.moves:
        printer.many(plan.moves, _columns(), lambda one: one.vm)
    for move in plan.moves:
        for reason in move.reasons:
            click.echo(safe.line(f"{move.vm} to {move.target_node}: {reason.message}"))
    for reason in plan.reasons:
        click.echo(safe.line(f"not more: {reason.message}" + (f"; try: {reason.remedy}" if reason.remedy else "")))


@balancer.command("set")
@click.option("--mode", type=click.Choice(MODES), help="off, propose or act.")
@click.option("--margin", type=click.FloatRange(0.01, 1), metavar="SHARE",
              help="How far apart two nodes must be used before a VM goes over. Usual: 0.1.")  # fmt: skip
@click.option("--pays-within", "pays_within_s", type=TIME, metavar="TIME",
              help="So much a move may cost; a second of standstill counts 60. Usual: 15m.")  # fmt: skip
@click.option("--cool-down", "cool_down_s", type=TIME, metavar="TIME",
              help="For so long a VM that was moved is left alone. Usual: 1h.")  # fmt: skip
@click.option("--node-cool-down", "node_cool_down_s", type=TIME, metavar="TIME",
              help="For so long a node that had a move has none for load. Usual: 10m.")  # fmt: skip
@click.option("--max-moves", type=click.IntRange(1, 100), metavar="N", help="At once. Usual: 2.")
@click.option("--window", "window_s", type=TIME, metavar="TIME",
              help="Over so long the load of nodes is smoothed. Usual: 5m.")  # fmt: skip
@prints
@asks
def set_(session: Session, **given: Any) -> None:
    """Set the balancer. What is not given stays as it is; moves under way go on.

    \b
    novacron balancer set --mode propose
    novacron balancer set --mode act --margin 0.15 --cool-down 2h
    """
    import msgspec

    from novacron.cli.edit import edit
    from novacron.client import balancer as calls

    said = {name: value for name, value in given.items() if value is not None}
    if not said:
        raise click.UsageError("nothing to set: give --mode, or another option")
    fields = calls.BalancerPut.__struct_fields__

    def change(now: Balancer) -> Any:
        wished = {name: getattr(now, name) for name in fields} | said
        return calls.put(msgspec.convert(wished, calls.BalancerPut), revision=now.revision)

    with session.connect() as nova:
        made = edit(nova, calls.get(), change)
    session.printer.done(made, f"balancer: {_words(made)}", lambda one: one.mode)


def _words(settings: Balancer) -> str:
    from novacron.cli import amounts

    pays, window = amounts.seconds(settings.pays_within_s), amounts.seconds(settings.window_s)
    vms, nodes = amounts.seconds(settings.cool_down_s), amounts.seconds(settings.node_cool_down_s)
    return (
        f"mode {settings.mode}, margin {settings.margin:.0%}, a move pays within {pays}, VMs cool down for {vms}, "
        f"nodes for {nodes}, at most {settings.max_moves} moves at once, loads over {window}"
    )


def _sentences(settings: Balancer, plan: Plan) -> Iterator[str]:
    yield _words(settings)
    if plan.before is None or plan.after is None:
        return
    was, then = plan.before, plan.after
    yield (
        f"CPU by {plan.cpu_by}; rules broken {was.broken_rules} -> {then.broken_rules}, "
        f"unmet {was.unmet_rules:.2f} -> {then.unmet_rules:.2f}, imbalance {was.imbalance:.3f} -> {then.imbalance:.3f}"
    )
    for node in plan.nodes[:1] + plan.nodes[1:][-1:]:
        yield f"{node.node}: memory {node.memory:.0%}, CPU {node.cpu:.0%}"


def _columns() -> list[Column[Move]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    return [
        Column("VM", lambda one: one.vm),
        Column("FROM", lambda one: one.source_node),
        Column("TO", lambda one: one.target_node),
        Column("WHY", lambda one: one.why),
        Column("GAIN", lambda one: f"{one.gain:.1%}"),
        Column("KIND", lambda one: one.kind),
        Column("TAKES", lambda one: amounts.seconds(one.total_s)),
        Column("STANDS", lambda one: amounts.seconds(one.downtime_s)),
        Column("MEMORY", lambda one: amounts.size(one.stream_bytes)),
        Column("DISKS", lambda one: amounts.size(one.disk_bytes)),
    ]
