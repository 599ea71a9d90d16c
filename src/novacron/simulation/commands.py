"""`novacron simulate`: what would happen to a cluster, played on this machine before it happens anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from novacron.cli.options import prints, session_of

RAN_TWICE = 1


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help="Another seed than the file's.")
@click.option("--brief", is_flag=True, help="The summary alone, without the timeline.")
@prints
@click.pass_context
def simulate(ctx: click.Context, file: Path, *, seed: int | None, brief: bool) -> None:
    """Play a scenario: the real control plane over simulated nodes, on virtual time.

    FILE says in TOML how many nodes and VMs there are and what happens to them; docs/simulate.md tells more, examples/
    has some. Nothing outside a temporary directory is touched, and no server is needed. Ends with exit code 1 if a VM
    was to run twice.
    """
    import tempfile

    import msgspec

    from novacron.clock import SystemClock
    from novacron.simulation import reading, show
    from novacron.simulation.run import simulate as play

    scenario = reading.read(file)
    if seed is not None:
        scenario = msgspec.structs.replace(scenario, seed=seed)
    with _hushed(), tempfile.TemporaryDirectory(prefix="novacron-simulate-") as root:
        report = play(scenario, Path(root), SystemClock())
    printer = session_of(ctx).printer
    if printer.is_for_people:
        if not brief:
            click.echo(f"{show.timeline(report.timeline)}\n")
        click.echo(show.summary(report))
    else:
        shown = msgspec.structs.replace(report, timeline=()) if brief else report
        printer.one(shown, lambda _: (), lambda one: one.scenario)
    if report.summary.violations:
        ctx.exit(RAN_TWICE)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Servers and nodes log what the timeline tells; as it was before, afterwards."""
    import logging

    import structlog

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
