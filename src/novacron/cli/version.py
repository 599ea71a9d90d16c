"""`novacron version`."""

from __future__ import annotations

import click


@click.command()
def version() -> None:
    """Print the version."""
    from novacron import __version__

    click.echo(f"novacron {__version__}")
