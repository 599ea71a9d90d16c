"""`novacron server run`, `agent run` and `store …`: become that process. Nothing of it is loaded here."""

from __future__ import annotations

import os
import sys

import click

from novacron.cli.server_list import list_servers

_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.group()
def server() -> None:
    """Run a control plane, and see which servers there are."""


server.add_command(list_servers)


@server.command("run", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_server(arguments: tuple[str, ...]) -> None:
    """Run a control plane in the foreground. All options are its own: `novacron server run --help`."""
    _become("novacron.control", arguments)


@click.group()
def agent() -> None:
    """Run a node's agent."""


@agent.command("run", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_agent(arguments: tuple[str, ...]) -> None:
    """Run this host's agent in the foreground. All options are its own: `novacron agent run --help`."""
    _become("novacron.agent", arguments)


@click.group()
def store() -> None:
    """Look after the store itself: move it, back it up, bring it back."""


@store.command("migrate", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def migrate_store(arguments: tuple[str, ...]) -> None:
    """Move all records to another store: --from sqlite:FILE --to etcd://…; no server may run meanwhile."""
    _become("novacron.control.store_admin", ("migrate", *arguments))


@store.command("backup", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def backup_store(arguments: tuple[str, ...]) -> None:
    """Write all records into a new FILE: --from STORE FILE; servers may go on."""
    _become("novacron.control.store_admin", ("backup", *arguments))


@store.command("restore", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def restore_store(arguments: tuple[str, ...]) -> None:
    """Make a store of a backup: FILE --to STORE; no server may run meanwhile."""
    _become("novacron.control.store_admin", ("restore", *arguments))


def _become(module: str, arguments: tuple[str, ...]) -> None:
    # -P: a directory in which somebody happens to stand must not decide which code runs.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 (no shell, on purpose)
