"""How a plan of a migration and a prediction are printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts, safe

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.cli.session import Session
    from novacron.client.migrations import Measurement, Migration, MigrationPlan, NodePlan, Prediction, Range


def show(session: Session, plan: MigrationPlan) -> None:
    """For people: a line a node, then why; for programs: all of it."""
    printer = session.printer
    if not printer.is_for_people:
        printer.one(plan, lambda _: (), lambda one: one.target_node or "-")
        return
    printer.many(plan.nodes, _columns(), lambda node: node.node)
    for line in _sentences(plan):
        click.echo(safe.line(line))


def _columns() -> list[Column[NodePlan]]:
    from novacron.cli.output import Column

    return [
        Column("NODE", lambda one: one.node),
        Column("ANSWER", _answer),
        Column("HOW", lambda one: f"{one.kind}, {one.strategy}" if one.kind == "live" else one.kind or "-"),
        Column("TOTAL", lambda one: span(one.predicted.total_ms) if one.predicted else "-"),
        Column("DOWNTIME", lambda one: span(one.predicted.downtime_ms) if one.predicted else "-"),
        Column("SENT", lambda one: _sizes(one.predicted.bytes_transferred) if one.predicted else "-"),
    ]


def _answer(node: NodePlan) -> str:
    if node.is_here:
        return "is here"
    if node.can:
        return "would be taken" if node.chosen else "can"
    return "cannot"


def _sentences(plan: MigrationPlan) -> Iterator[str]:
    if plan.not_before is not None:
        yield f"it would wait until {plan.not_before:%Y-%m-%d %H:%M} UTC; --now begins at once"
    if plan.measured is not None:
        yield f"measured: {measured(plan.measured)}"
    for node in plan.nodes:
        for reason in node.reasons:
            words = reason.message.removeprefix(f"{node.node}: ")
            yield f"{node.node}: {words}" + (f"; try: {reason.remedy}" if reason.remedy else "")
    for node in plan.nodes:
        if node.chosen:
            yield from node.explanation


def span(range_: Range) -> str:
    """A time with its error bar."""
    return f"{amounts.milliseconds(round(range_.expected))} ({_short(range_.low)}-{_short(range_.high)})"


def _short(span_ms: float) -> str:
    return amounts.milliseconds(round(span_ms)).replace(" ", "")


def _sizes(range_: Range) -> str:
    return f"{amounts.size(range_.expected)} ({amounts.size(range_.low)} - {amounts.size(range_.high)})"


def measured(seen: Measurement) -> str:
    """What a machine was found to hold and to write."""
    written = amounts.rate(seen.dirtied_bytes / seen.interval_s)
    return f"{amounts.size(seen.memory_used_bytes)} in use, {written} written, by sampling"


def predicted(prediction: Prediction) -> str:
    """A prediction in a line."""
    sent = _sizes(prediction.bytes_transferred)
    return f"total {span(prediction.total_ms)}, downtime {span(prediction.downtime_ms)}, {sent} sent"


def off(one: Migration) -> str:
    """How wrong its prediction was; empty when that is not known."""
    error = one.prediction_error
    if error is None:
        return ""
    parts = (("total", error.total_percent), ("downtime", error.downtime_percent), ("bytes", error.bytes_percent))
    return ", ".join(f"{name} {percent:+.0f} %" for name, percent in parts if percent is not None)
