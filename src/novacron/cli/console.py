"""The serial console's log: printed once, or followed by looking again and again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from novacron.cli import safe
from novacron.client import vms

if TYPE_CHECKING:
    from novacron.client.sync import Client

LOOK_EVERY_S = 0.5


def print_console(nova: Client, ref: str, max_bytes: int, *, follow: bool, raw: bool) -> None:
    """Print the log's end to stdout; with follow go on for ever.

    :raise NovaCronError: it cannot be read (any more).
    """
    log = nova.do(vms.console_log(ref, max_bytes))
    _write(log.text, raw=raw)
    while follow:
        time.sleep(LOOK_EVERY_S)  # the server has no event for it: looking is the way
        later = nova.do(vms.console_log(log.vm_id, max_bytes))
        new = added(log.text, later.text)
        if new is None:
            click.echo("note: more was written between two looks than is kept; some is missing here", err=True)
            new = later.text
        _write(new, raw=raw)
        log = later


def added(before: str, after: str) -> str | None:
    """What of `after` is new, when both are the last part of one growing text. None: they do not meet."""
    if after.startswith(before):
        return after[len(before) :]
    overlap = _longest_overlap(before, after)
    return after[overlap:] if overlap else None


def _longest_overlap(before: str, after: str) -> int:
    """The longest end of `before` that `after` begins with, in linear time (Knuth, Morris, Pratt)."""
    end = before[-len(after) :] if after else ""
    border = [0] * len(after)
    for at in range(1, len(after)):
        length = border[at - 1]
        while length and after[at] != after[length]:
            length = border[length - 1]
        border[at] = length + (after[at] == after[length])
    met = 0
    for one in end:
        if met == len(after):
            met = border[met - 1]
        while met and one != after[met]:
            met = border[met - 1]
        met += one == after[met]
    return met


def _write(text: str, *, raw: bool) -> None:
    if text:
        click.echo(text if raw else safe.console(text), nl=False, color=True if raw else None)
        sys.stdout.flush()
