"""Options that many commands share, and the types of their values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from novacron.cli import amounts
from novacron.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("table", "wide", "json", "yaml", "name")
SERVER_FORMS = "https://host:port, http://127.0.0.1:port or unix:/path; several with commas: whichever answers."
FILE = click.Path(path_type=Path, dir_okay=False)


class Amount(click.ParamType[Any]):
    """A value read by one of the functions of `amounts`."""

    def __init__(self, name: str, read: Callable[[str], float]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


SIZE = Amount("size", amounts.read_size)
RATE = Amount("rate", amounts.read_rate)
TIME = Amount("time", amounts.read_time)


class Moment(click.ParamType[Any]):
    """A time of a day, as RFC 3339 has it; without a zone UTC is meant."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import datetime  # here: few commands take one

        if isinstance(value, datetime.datetime):
            return value
        try:
            read = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time as 2026-01-02T22:00+01:00", param, ctx)
        return read if read.tzinfo else read.replace(tzinfo=datetime.UTC)


MOMENT = Moment()


class Pair(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, separator, content = str(value).partition("=")
        if not key or not separator:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, content


PAIR = Pair()


def session_of(ctx: click.Context) -> Session:
    """What the command line has said so far of server and output; made by the first who asks."""
    return ctx.find_root().ensure_object(Session)


def _note(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(session_of(ctx), name, value)

    return callback


def _note_flag(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and param.name:
        setattr(session_of(ctx), param.name, True)


def _server_options(function: F, *, hidden: bool) -> F:
    text = "Answers are no older than the question, whichever server is asked; needs a moment more."
    function = click.option(
        "--consistent", is_flag=True, expose_value=False, callback=_note_flag, hidden=hidden, help=text
    )(function)
    for flag, name, metavar, kind, text in (
        ("--ca-file", "ca_file", "FILE", FILE, "Trust the https server by this CA alone."),
        ("--token-file", "token_file", "FILE", FILE, "Read the token from this file."),
        ("--context", "context", "NAME", str, "Use this context instead of the current one."),
        ("--server", "server", "ADDRESS", str, SERVER_FORMS),
    ):
        function = click.option(
            flag, metavar=metavar, type=kind, expose_value=False, callback=_note(name), hidden=hidden, help=text
        )(function)
    return function


def server_options(function: F) -> F:
    """Where the server is and who asks; shown in the help."""
    return _server_options(function, hidden=False)


def asks(function: F) -> F:
    """For a command that asks the server: hands it the Session first, and takes the server options too."""

    @click.pass_context
    def with_session(ctx: click.Context, /, *args: Any, **more: Any) -> Any:
        return ctx.invoke(function, session_of(ctx), *args, **more)

    with_session.__doc__ = function.__doc__
    with_session.__name__ = function.__name__
    with_session.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return _server_options(with_session, hidden=True)  # type: ignore[return-value]


def prints(function: F) -> F:
    """For a command that prints records: `-o FORMAT`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=_note("output"),
        help="How to print; without it a table. json and yaml hold every field, name one name a line.",
    )(function)


def selects(function: F) -> F:
    """For a command that lists: `-l SELECTOR`."""
    return click.option(
        "-l",
        "--selector",
        "selector",
        metavar="KEY=VALUE",
        multiple=True,
        help="Only those with this label: KEY=VALUE, KEY!=VALUE or KEY. Repeat it to ask for more.",
    )(function)


def waits(timeout: str) -> Callable[[F], F]:
    """For a command that begins slow work: `--wait` and `--timeout`."""

    def decorate(function: F) -> F:
        function = click.option(
            "--timeout",
            "timeout_s",
            metavar="TIME",
            type=TIME,
            default=timeout,
            show_default=True,
            help=f"With --wait: how long. {amounts.TIME_RULE}.",
        )(function)
        return click.option("--wait", is_flag=True, help="Return when it is done, showing progress on stderr.")(
            function
        )

    return decorate


def confirms(function: F) -> F:
    """For a command that destroys: `--yes`."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask. Off a terminal nothing is asked.")(function)


def confirm(what: str, *, yes: bool) -> None:
    """Ask on a terminal; off one, or with yes, go on. :raise click.Abort"""
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(what, abort=True, err=True)
