"""The command `novacron`: its nouns, and what happens when one fails or is interrupted."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from novacron.cli.lazy import LazyGroup
from novacron.cli.options import server_options

NOUNS = {
    "vm": ("novacron.cli.vm:vm", "Make, run, move and remove VMs."),
    "migration": ("novacron.cli.migration:migration", "Watch, pace and cancel the moving of VMs."),
    "migration-policy": (
        "novacron.cli.migration_policy:migration_policy",
        "Give goals of migrations a name.",
    ),
    "bulk-migration": ("novacron.cli.bulk_migration:bulk_migration", "Move many VMs within limits."),
    "plan": ("novacron.cli.plan:plan", "Say beforehand what emptying or losing a node would mean."),
    "balancer": ("novacron.cli.balancer:balancer", "Have VMs moved to where they had better be."),
    "node": ("novacron.cli.node:node", "Look after the hosts that run VMs."),
    "ha": ("novacron.cli.ha_status:ha", "See what becomes of VMs when nodes fail."),
    "volume": ("novacron.cli.volume:volume", "Keep disks, with VMs and without."),
    "pool": ("novacron.cli.pool:pool", "Say where volumes may lie."),
    "image": ("novacron.cli.image:image", "Keep what VMs are made from."),
    "template": ("novacron.cli.template:template", "Write down VMs that are made many times."),
    "network": ("novacron.cli.network:network", "Make networks that span the nodes."),
    "security-group": ("novacron.cli.security_group:security_group", "Say what may pass the cards of VMs."),
    "snapshot": ("novacron.cli.snapshot:snapshot", "Keep VMs as they are at a moment, and go back to it."),
    "schedule": ("novacron.cli.schedule:schedule", "Have snapshots taken by themselves."),
    "events": ("novacron.cli.events:events", "Show changes of VMs, nodes, images and migrations."),
    "context": ("novacron.cli.context:context", "Remember servers by name."),
    "lab": ("novacron.lab.commands:lab", "Try NovaCron with several nodes on this machine."),
    "simulate": (
        "novacron.simulation.commands:simulate",
        "Play a scenario: the real control plane over simulated nodes, on virtual time.",
    ),
    "server": ("novacron.cli.run:server", "Run a control plane, and see which servers there are."),
    "agent": ("novacron.cli.run:agent", "Run a node's agent."),
    "cluster": ("novacron.cli.run:cluster", "Look after the CA by which servers and nodes know each other."),
    "store": ("novacron.cli.run:store", "Look after the store itself: move it, back it up, bring it back."),
    "completion": ("novacron.cli.completion:completion", "Print the completion script of a shell."),
    "version": ("novacron.cli.version:version", "Print the version."),
}
INTERRUPTED = 130


class Root(LazyGroup):
    """Turns errors into words on stderr and exit codes, for every command below."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            from novacron.errors import NovaCronError  # here: a command that succeeds need not know errors

            if not isinstance(error, NovaCronError):
                raise
            from novacron.cli import failures

            ctx.exit(failures.report(error))


@click.group(cls=Root, lazy=NOUNS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@server_options
def novacron() -> None:
    """NovaCron runs virtual machines on many hosts and moves them between hosts while they run.

    The server is found by --server, NOVACRON_SERVER, the context in use (see `novacron context`), or else at
    http://127.0.0.1:8470. The token is taken from --token-file, NOVACRON_TOKEN_FILE, NOVACRON_TOKEN or the context,
    never from an argument. These options may also stand after the command.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict,
    5 refused or invalid, 6 server unreachable, 7 deadline passed, 130 interrupted.
    """


def main() -> None:
    """Entry point of the `novacron` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter shows its number
    novacron(prog_name="novacron")


if __name__ == "__main__":
    main()
