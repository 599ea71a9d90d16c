"""Progress on stderr: a live bar on a terminal, a line at each change elsewhere. stdout stays for results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import msgspec

from novacron.cli import safe

STEPS = 10
"""Off a terminal: how many lines a bar becomes."""


class Stage(msgspec.Struct, frozen=True):
    """Where the work is. done, of: the bar (of None: nobody knows); words: beside the bar, may change at any time."""

    title: str
    words: str = ""
    done: float = 0.0
    of: float | None = None


Show = Callable[[Stage], None]


@contextmanager
def progress() -> Iterator[Show]:
    """Yields what shows a stage; the bar goes when the work ends, well or not."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[words]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None, words="")

        def show(stage: Stage) -> None:
            bar.update(
                task,
                description=safe.line(stage.title),
                words=safe.line(stage.words),
                completed=stage.done,
                total=stage.of,
            )

        yield show


class _Lines:
    """A line when the title changes or another tenth is done."""

    def __init__(self) -> None:
        self._told: tuple[str, int] = ("", -1)

    def show(self, stage: Stage) -> None:
        tenth = int(STEPS * stage.done / stage.of) if stage.of else -1
        if (stage.title, tenth) == self._told:
            return
        self._told = (stage.title, tenth)
        click.echo(safe.line(" ".join(part for part in (stage.title, stage.words) if part)), err=True)
