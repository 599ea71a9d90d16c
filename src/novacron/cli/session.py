"""One run of a command: which server, which token, and how to print. Loads the client only when it connects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from novacron.cli.contexts import Context, Contexts
    from novacron.cli.output import Printer
    from novacron.client.sync import Client

MAX_TOKEN_BYTES = 4096


class Session:
    """What the options said; environment and configuration file fill the gaps. Empty: not said."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = os.environ if environment is None else environment
        self.server = ""
        self.context = ""
        self.token_file: Path | None = None
        self.ca_file: Path | None = None
        self.output = ""
        self.consistent = False

    @property
    def printer(self) -> Printer:
        """How records are printed."""
        from novacron.cli.output import Printer  # here: help needs none of it

        return Printer(self.output or "table")

    @property
    def config_file(self) -> Path:
        """Where contexts are kept."""
        from novacron.cli.contexts import default_file

        return default_file(self.environment)

    def connect(self) -> Client:
        """A client of the server that is meant; nothing has been sent yet.

        :raise NovaCronError: the configuration is wrong or the token cannot be read.
        """
        from novacron.client.sync import Client

        server, token, ca_file = self._resolved()
        return Client(server, token, ca_file=ca_file, on_notice=_notice, consistent=self.consistent)

    def connect_briefly(self, within_s: float) -> Client:
        """The same for somebody who is typing: it tries once, soon gives up, and says nothing meanwhile."""
        from novacron.client.sync import Client

        server, token, ca_file = self._resolved()
        return Client(server, token, ca_file=ca_file, answer_within_s=within_s, tries=1)

    def _resolved(self) -> tuple[str, str, Path | None]:
        target = self._target()
        return target.server, self._token(target), Path(target.ca_file) if target.ca_file else None

    def _target(self) -> Context:
        """Options before environment before context, but a context that was asked for before the environment.

        A context's token and CA go to that context's server alone.
        """
        from novacron.cli.contexts import Context, read
        from novacron.client.endpoint import DEFAULT_SERVER

        kept = self._kept(read(self.config_file))
        server = self.server or self._said("NOVACRON_SERVER") or (kept.server if kept else DEFAULT_SERVER)
        same = kept is not None and kept.server == server
        token_file = self.token_file or self._said("NOVACRON_TOKEN_FILE")
        return Context(
            server,
            str(token_file) or (kept.token_file if kept and same else ""),
            str(self.ca_file or "") or (kept.ca_file if kept and same else ""),
        )

    def _said(self, name: str) -> str:
        """What the environment says; nothing when a context was asked for."""
        return "" if self.context else self.environment.get(name, "")

    def _kept(self, contexts: Contexts) -> Context | None:
        name = self.context or contexts.current
        return contexts.named(name) if name else None

    def _token(self, target: Context) -> str:
        """The option's file, then NOVACRON_TOKEN, then the environment's or the context's file."""
        given = self._said("NOVACRON_TOKEN")
        if given and self.token_file is None:
            return given
        return _read_token(Path(target.token_file)) if target.token_file else ""


def _read_token(file: Path) -> str:
    from novacron.errors import InvalidInput

    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_TOKEN_BYTES).decode("ascii").strip()
            others_may = os.fstat(opened.fileno()).st_mode & 0o077
    except UnicodeDecodeError as wrong:
        raise InvalidInput.field("token_file", f"{file} holds no token", "give the file that holds it") from wrong
    except OSError as wrong:
        raise InvalidInput.field(
            "token_file", f"cannot read {file}: {wrong.strerror}", "see who may read it"
        ) from wrong
    if others_may:
        click.echo(f"warning: others may read the token in {file}; chmod 600 it", err=True)
    return text


def _notice(sentence: str) -> None:
    from novacron.cli import safe

    click.echo(f"note: {safe.line(sentence)}", err=True)
