"""How records are printed: a table (coloured on a terminal), JSON, YAML, or names alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import click
import msgspec

from novacron.cli import safe

T = TypeVar("T")
GAP = "  "

_STATE = "STATE"
_COLOURS = {
    **dict.fromkeys(("running", "up", "ready", "completed"), "green"),
    **dict.fromkeys(("error", "failed", "fenced", "down", "unknown"), "red"),
    **dict.fromkeys(("suspect", "fencing", "rolled_back", "paused", "cordoned"), "yellow"),
}


class Column(msgspec.Struct, Generic[T], frozen=True):
    """title; text of one record; wide: shown by `-o wide` only."""

    title: str
    text: Callable[[T], str]
    wide: bool = False


class Printer:
    """Prints to stdout in the format asked for."""

    def __init__(self, format_: str) -> None:
        self.format = format_

    @property
    def is_for_people(self) -> bool:
        """Whether sentences may go to stdout."""
        return self.format in ("table", "wide")

    def many(self, items: Iterable[T], columns: Sequence[Column[T]], name: Callable[[T], str]) -> None:
        """A list; names are printed as they come, everything else once all have."""
        if self.format == "name":
            for item in items:
                click.echo(safe.line(name(item)))
        elif self.is_for_people:
            shown = [column for column in columns if self.format == "wide" or not column.wide]
            rows = [[safe.line(column.text(item)) for column in shown] for item in items]
            click.echo(table([column.title for column in shown], rows, coloured=_wants_colours()))
        else:
            click.echo(as_text([msgspec.to_builtins(item) for item in items], self.format))

    def one(self, item: T, details: Callable[[T], Iterable[tuple[str, str]]], name: Callable[[T], str]) -> None:
        """One record: every detail on its line."""
        if self.format == "name":
            click.echo(safe.line(name(item)))
        elif self.is_for_people:
            _details(list(details(item)))
        else:
            click.echo(as_text(msgspec.to_builtins(item), self.format))

    def done(self, item: T, sentence: str, name: Callable[[T], str]) -> None:
        """What a verb led to: a sentence for people, the record for programs."""
        if self.is_for_people:
            click.echo(safe.line(sentence))
        else:
            self.one(item, lambda _: (), name)


def as_text(data: Any, format_: str) -> str:
    """`data` as JSON or YAML; nothing in it can act on a terminal."""
    if format_ == "json":
        return safe.json_text(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
    import yaml  # here: the other formats do without

    text: str = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120)
    if not text.replace("\n", "").isprintable():
        text = yaml.safe_dump(data, allow_unicode=False, sort_keys=False, width=120)
    return text.rstrip("\n")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, coloured: bool = False) -> str:
    """Aligned columns, two spaces between, none at the ends. Nothing is cut: a terminal too narrow wraps the line.

    coloured: states in their colours.
    """
    widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return GAP.join(_painted(*pair) if coloured else pair[1] for pair in zip(titles, padded, strict=True)).rstrip()

    return "\n".join(line(row) for row in [titles, *rows])


def _painted(title: str, padded: str) -> str:
    colour = _COLOURS.get(padded.rstrip()) if title == _STATE else None
    return click.style(padded, fg=colour) if colour else padded


def _wants_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _details(pairs: Sequence[tuple[str, str]]) -> None:
    width = max((len(title) for title, _ in pairs), default=0) + 1
    for title, text in pairs:
        first, *rest = safe.lines(text).split("\n")
        click.echo(f"{title + ':':<{width}}{GAP}{first}".rstrip())
        for line in rest:
            click.echo(f"{'':<{width}}{GAP}{line}".rstrip())
