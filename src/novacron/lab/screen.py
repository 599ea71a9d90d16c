"""What the demo shows: lines with the time passed, a bar while a migration runs, a table, and what went wrong."""

from __future__ import annotations

import time
from typing import TextIO

from novacron.client.migrations import Migration
from novacron.errors import NovaCronError

_BAR = 30
_EVERY_S = 0.5
_INDENT = " " * 11


class Screen:
    """Plain text. On a terminal a migration's bar is drawn over itself, elsewhere it becomes a line now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began_s = time.monotonic()
        self._drawn = False
        self._state = ""
        self._shown_s = 0.0

    def say(self, text: str) -> None:
        """One line of progress."""
        self._end_bar()
        self._write(f"[{time.monotonic() - self._began_s:6.1f} s] {text}\n")

    def lines(self, *lines: str) -> None:
        self._end_bar()
        self._write("".join(f"{line}\n" for line in lines))

    def table(self, rows: list[tuple[str, str]]) -> None:
        left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
        rule = f"+-{'-' * left}-+-{'-' * right}-+"
        self.lines("", rule, *(f"| {name:<{left}} | {value:>{right}} |" for name, value in rows), rule, "")

    def progress(self, migration: Migration) -> None:
        """The migration as it is now."""
        now = time.monotonic()
        if migration.state == self._state and now - self._shown_s < (0 if self._out.isatty() else _EVERY_S):
            return
        self._state, self._shown_s = migration.state, now
        text = describe(migration)
        if self._out.isatty():
            self._write(f"\r\x1b[K{_INDENT}{text}")
            self._drawn = True
        else:
            self.say(text)

    def failure(self, failure: NovaCronError) -> None:
        remedies = [reason.remedy for reason in failure.reasons if reason.remedy]
        self.lines(f"error: {failure.message}", *(f"       {remedy}" for remedy in remedies))

    def _end_bar(self) -> None:
        if self._drawn:
            self._write("\n")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def describe(migration: Migration) -> str:
    """One line about a migration under way. What remains may grow again: a guest dirties what was sent."""
    progress = migration.progress
    if progress is None or not progress.total_bytes or migration.state != "transferring":
        return f"migration: {migration.state}"
    done = 1 - progress.remaining_bytes / progress.total_bytes
    bar = "#" * round(_BAR * done)
    return (
        f"migration: {migration.state} [{bar:<{_BAR}}] {progress.transferred_bytes / 1e6:.0f} MB sent, "
        f"{progress.remaining_bytes / 1e6:.0f} MB remain, {progress.rate_bytes_per_s / 1e6:.0f} MB/s, "
        f"pass {progress.iteration}"
    )
