"""`novacron context`: remember servers by name."""

from __future__ import annotations

from pathlib import Path

import click

from novacron.cli.options import FILE, SERVER_FORMS, session_of


@click.group()
def context() -> None:
    """Remember servers by name, in ~/.config/novacron/client.toml. No token is kept there, only where it lies."""


@context.command("list")
@click.pass_context
def list_contexts(ctx: click.Context) -> None:
    """List contexts; the one in use is marked."""
    from novacron.cli import contexts, safe
    from novacron.cli.output import table

    kept = contexts.read(session_of(ctx).config_file)
    rows = [
        [
            "*" if name == kept.current else "",
            *(safe.line(cell) or "-" for cell in (name, one.server, one.token_file, one.ca_file)),
        ]
        for name, one in kept.contexts.items()
    ]
    click.echo(table(["IN USE", "NAME", "SERVER", "TOKEN FILE", "CA FILE"], rows))


@context.command()
@click.argument("name")
@click.pass_context
def use(ctx: click.Context, name: str) -> None:
    """Use this context from now on."""
    import msgspec

    from novacron.cli import contexts, safe

    file = session_of(ctx).config_file
    kept = contexts.read(file)
    found = kept.named(name)
    contexts.write(file, msgspec.structs.replace(kept, current=name))
    click.echo(safe.line(f"in use: {name}, {found.server}"))


@context.command("set")
@click.argument("name")
@click.option("--server", required=True, metavar="ADDRESS", help=SERVER_FORMS)
@click.option("--token-file", type=FILE, metavar="FILE", help="The file that holds the token.")
@click.option("--ca-file", type=FILE, metavar="FILE", help="Trust the https server by this CA alone.")
@click.pass_context
def set_context(ctx: click.Context, name: str, server: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Add or replace a context. The first one is in use at once."""
    from novacron.cli import contexts, safe
    from novacron.client.endpoint import endpoints_of

    endpoints_of(server, ca_file)
    file = session_of(ctx).config_file
    paths = [str(path.absolute()) if path else "" for path in (token_file, ca_file)]
    kept = contexts.with_context(contexts.read(file), name, contexts.Context(server, *paths))
    contexts.write(file, kept)
    click.echo(safe.line(f"{name}: {server}" + (" (in use)" if kept.current == name else "")))


@context.command()
@click.argument("name")
@click.pass_context
def remove(ctx: click.Context, name: str) -> None:
    """Forget a context."""
    from novacron.cli import contexts, safe

    file = session_of(ctx).config_file
    kept = contexts.read(file)
    kept.named(name)
    rest = {key: one for key, one in kept.contexts.items() if key != name}
    contexts.write(file, contexts.Contexts("" if kept.current == name else kept.current, rest))
    click.echo(safe.line(f"{name}: removed"))
