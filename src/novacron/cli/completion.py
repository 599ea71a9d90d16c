"""`novacron completion`: print a shell's completion script."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell. It completes commands, options, and the names of VMs, nodes and images.

    \b
    novacron completion bash > ~/.local/share/bash-completion/completions/novacron
    novacron completion zsh > ~/.zfunc/_novacron
    novacron completion fish > ~/.config/fish/completions/novacron.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this installation cannot complete for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "novacron", "_NOVACRON_COMPLETE").source())
