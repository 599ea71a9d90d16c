"""Writes docs/cli.md from the commands themselves: `python -m novacron.cli.document > docs/cli.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from novacron.cli import amounts
from novacron.cli.main import novacron

HEAD = f"""\
# The command line

Written by `python -m novacron.cli.document`; a test keeps it in step with the commands.

## What every command does alike
- **Where the server is**: `--server`, else `NOVACRON_SERVER`, else the context in use (`novacron context`), else
  `http://127.0.0.1:8470`. Forms: `https://host:port`, `http://` on this machine only, `unix:/path`. Proxy variables
  are not looked at. The options may stand before the noun or after the verb.
- **Who asks**: `--token-file`, else `NOVACRON_TOKEN`, else `NOVACRON_TOKEN_FILE`, else the context's file. A server
  writes its first token to `admin.token` in its data directory. Tokens are never arguments, and a context's token goes
  to that context's server only. `--context` counts more than the environment.
- **What is printed**: results on stdout, progress and errors on stderr. `-o table` (default; `wide` has more columns)
  is for people; `json` and `yaml` hold every field; `name` prints one name (migrations: id) a line. Characters that
  could act on a terminal are written as escapes.
- **Waiting**: verbs return when the server has taken the order. With `--wait` they return when it is done (events, no
  polling), and fail when it fails or `--timeout` passes. Interrupting a wait ends nothing but the wait.
- **Repeating**: writes carry an idempotency key and are sent again after a broken connection or a 503; what cannot be
  repeated safely is not.
- **Amounts**: sizes: {amounts.SIZE_RULE}. Rates: {amounts.RATE_RULE}. Times: {amounts.TIME_RULE}.

| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | it failed (a VM in error, a migration that did not arrive) |
| 2 | wrong usage |
| 3 | not found |
| 4 | conflict: the state does not allow it, a name is taken, somebody else wrote first |
| 5 | refused or invalid: bad input, no room, no permission, no token |
| 6 | the server (or the node it needs) cannot be reached |
| 7 | a deadline passed; what was asked for may go on |
| 130 | interrupted, or not confirmed |

`~/.config/novacron/client.toml` (written by `novacron context set`):
```toml
current = "lab"

[contexts.lab]
server = "https://nova.example:8470"
token_file = "/home/me/.config/novacron/lab.token"
ca_file = "/home/me/.config/novacron/lab-ca.pem"
```
"""


def document() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n{part}" for part in _parts(novacron, "novacron", None))


def commands(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, click.Context]]:
    """Every command below `command` and itself, with the words that lead to it."""
    ctx = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield path, ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            if child is not None:
                yield from commands(child, f"{path} {name}", ctx)


def _parts(root: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    for words, ctx in commands(root, path, parent):
        if ctx.parent is None:
            continue
        if isinstance(ctx.command, click.Group):
            yield f"## {words}\n{_help(ctx.command)}\n"
        else:
            yield _command(words, ctx)


def _command(words: str, ctx: click.Context) -> str:
    level = "##" if ctx.parent and ctx.parent.parent is None else "###"
    usage = " ".join([words, *ctx.command.collect_usage_pieces(ctx)])
    options = [one for one in ctx.command.get_params(ctx) if isinstance(one, click.Option) and "--help" not in one.opts]
    records = [record for one in options if (record := one.get_help_record(ctx))]
    table = "\n".join(f"- `{names}`: {text}" for names, text in records)
    return f"{level} {words}\n`{usage}`\n\n{_help(ctx.command)}\n" + (f"\n{table}\n" if table else "")


def _help(command: click.Command) -> str:
    """The help text; passages that Click prints as they are become code."""
    passages = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        f"```\n{one.removeprefix(chr(8)).strip(chr(10))}\n```" if one.startswith("\b") else " ".join(one.split())
        for one in passages
    )


if __name__ == "__main__":
    click.echo(document(), nl=False)
