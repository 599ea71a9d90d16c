"""How records are printed: a table (rich on a terminal, aligned text elsewhere), JSON, YAML, or names alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import click
import msgspec

from novacron.cli import safe

T = TypeVar("T")
GAP = "  "

_COLOURS = {
    **dict.fromkeys(("running", "up", "ready", "completed"), "green"),
    **dict.fromkeys(("error", "failed", "fenced", "down", "unknown"), "red"),
    **dict.fromkeys(("stopped", "cancelled"), "dim"),
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
        """A list; names and JSON lines of YAML are printed as they come, tables once all have."""
        if self.format == "name":
            for item in items:
                click.echo(safe.line(name(item)))
        elif self.is_for_people:
            shown = [column for column in columns if self.format == "wide" or not column.wide]
            rows = [[safe.line(column.text(item)) for column in shown] for item in items]
            _table([column.title for column in shown], rows)
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


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two spaces between, none at the ends."""
    every = [titles, *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(titles))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        click.echo(plain_table(titles, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold" if title == "NAME" else "ellipsis", no_wrap=title != "NAME")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(width=shutil.get_terminal_size().columns).print(table)


def _details(pairs: Sequence[tuple[str, str]]) -> None:
    width = max((len(title) for title, _ in pairs), default=0) + 1
    for title, text in pairs:
        first, *rest = safe.lines(text).split("\n")
        click.echo(f"{title + ':':<{width}}{GAP}{first}".rstrip())
        for line in rest:
            click.echo(f"{'':<{width}}{GAP}{line}".rstrip())
