"""Names for the shell to complete, asked of the server."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from novacron.client.call import Call

WITHIN_S = 1.0


def names(noun: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes names of a noun: `vms`, `nodes` and so on, each a module of the client library."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        from novacron.cli.options import session_of
        from novacron.errors import NovaCronError

        search: Callable[[], Call[Any]] = importlib.import_module(f"novacron.client.{noun}").search
        try:
            with session_of(ctx).connect_briefly(WITHIN_S) as nova:
                page = nova.do(search())
        except NovaCronError:
            return []  # somebody is typing: an error would land in the middle of their line
        return [item.name for item in page.items if item.name.startswith(incomplete) and item.name.isprintable()]

    return complete
