"""`novacron lab`: several nodes on this machine, linked as on a real network, to try things on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.options import RATE, TIME, Amount, prints, session_of

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.lab.links import LinkState
    from novacron.lab.orders import NodeStatus, Order, Status

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?\Z")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%?\Z", re.ASCII)
SHARE_RULE = "percent, like 0.1% or 5"


def read_share(text: str) -> float:
    """A share of one from percent. :raise ValueError: with what would be right."""
    match = _SHARE.match(text.strip())
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is no share: {SHARE_RULE}")
    return float(match[1]) / 100


SHARE = Amount("share", read_share)


def _name_option(function: Any) -> Any:
    return click.option("--name", default="demo", show_default=True, help="Which lab.")(function)


def _link_options(function: Any) -> Any:
    for flag, name, kind, text in (
        ("--rate", "rate", RATE, "How fast each direction may be, like 1Gbit; 0: as fast as it goes."),
        ("--loss", "loss", SHARE, f"Which share of frames is lost in each direction: {SHARE_RULE}."),
        ("--jitter", "jitter_s", TIME, "Give or take so much of the latency. Frames stay in order."),
        ("--latency", "latency_s", TIME, "How late frames come, one way, in each direction, like 5ms."),
    ):
        function = click.option(flag, name, type=kind, help=text)(function)
    return function


@click.group()
def lab() -> None:
    """Try NovaCron with several nodes on this machine.

    As root each node is a host of its own: network, processes, state, and a link to the others that can be late, lossy,
    slow or cut. Without root the nodes share this machine's network, and have no links. docs/lab.md tells more.
    """


@lab.command()
@click.option("--nodes", type=click.IntRange(1, 50), default=2, show_default=True, help="How many.")
@_name_option
@_link_options
@click.pass_context
def up(
    ctx: click.Context,
    *,
    nodes: int,
    name: str,
    latency_s: float | None,
    jitter_s: float | None,
    loss: float | None,
    rate: int | None,
) -> None:
    """Start a lab that stays until `novacron lab down`. Adds the context lab-NAME."""
    import os

    from novacron.lab import orders, standing

    path, privileged = _path(name), os.geteuid() == 0
    changes = _link_changes(latency_s, jitter_s, loss, rate)
    if changes and not privileged:
        raise click.UsageError("links need root: run it as root, or without --latency, --jitter, --loss and --rate")
    link = orders.Bend(node="", **changes).applied(_plain_link()).check()
    plan = orders.Plan(nodes=nodes, privileged=privileged, link=link)
    if not privileged:
        click.echo("without root: nodes share this machine's network, and have no links and no power switch", err=True)
    status = standing.up(path, plan, lambda text: click.echo(text, err=True))
    _remember(ctx, name, status)
    _tell(name, status)


@lab.command()
@_name_option
@click.pass_context
def down(ctx: click.Context, name: str) -> None:
    """End a lab with all its machines, or what is left of one whose processes were killed."""
    from novacron.lab import standing

    path = _path(name)
    if not path.exists():
        _forget(ctx, name)
        click.echo(f"there is no lab {name}")
        return
    by_hand = standing.down(path)
    _forget(ctx, name)
    click.echo(f"{name}: gone" + (f"; {by_hand} processes had to be ended by hand" if by_hand else ""))


@lab.command("list")
@prints
@click.pass_context
def list_labs(ctx: click.Context) -> None:
    """List the labs of this user on this machine."""
    from novacron.cli.output import Column
    from novacron.lab import record
    from novacron.lab.lab import found
    from novacron.lab.orders import is_up

    rows = [
        (name, "up" if is_up(path) else "held" if record.is_held(path) else "cut off", str(path))
        for name, path in found().items()
    ]
    columns: list[Column[tuple[str, str, str]]] = [
        Column("NAME", lambda row: row[0]),
        Column("STATE", lambda row: row[1]),
        Column("DIRECTORY", lambda row: row[2]),
    ]
    session_of(ctx).printer.many(rows, columns, lambda row: row[0])


@lab.command()
@_name_option
@prints
@click.pass_context
def status(ctx: click.Context, name: str) -> None:
    """Show a lab's nodes and links."""
    from novacron.lab.orders import Look

    printer, seen = session_of(ctx).printer, _ask(name, Look())
    if printer.is_for_people:
        printer.many(seen.nodes, _columns(), lambda node: node.name)
        for line in _remarks(seen):
            click.echo(line)
    else:
        printer.one(seen, lambda _: (), lambda one: one.path)


@lab.command()
@click.argument("where", metavar="NODE|NODE:NODE")
@_link_options
@click.option("--cut", "act", flag_value="cut", help="Silence: nothing passes, and no end sees a carrier go.")
@click.option("--unplug", "act", flag_value="unplug", help="Pull the cable: both ends see the carrier go.")
@click.option("--mend", "act", flag_value="mend", help="Neither cut nor unplugged any more.")
@_name_option
def link(
    *,
    where: str,
    latency_s: float | None,
    jitter_s: float | None,
    loss: float | None,
    rate: int | None,
    act: str | None,
    name: str,
) -> None:
    """Change the link of a node, at once: only what is given. A pair of nodes can be cut apart and mended."""
    from novacron.lab.orders import Bend, Part

    changes = _link_changes(latency_s, jitter_s, loss, rate)
    one, colon, other = where.partition(":")
    if colon:
        if changes or act not in ("cut", "mend"):
            raise click.UsageError("a pair can be --cut and --mend; latency, loss and rate are a node's")
        _ask(name, Part(one=one, other=other, cut=act == "cut"))
    elif not changes and not act:
        raise click.UsageError("say what to change: --latency, --jitter, --loss, --rate, --cut, --unplug or --mend")
    else:
        acts = {"cut": {"cut": True}, "unplug": {"unplugged": True}, "mend": {"cut": False, "unplugged": False}}
        _ask(name, Bend(node=one, **changes, **acts.get(act or "", {})))
    click.echo(f"{where}: changed")


@lab.command()
@click.argument("node", metavar="NODE|server")
@click.option("--agent", "agent_only", is_flag=True, help="Its agent alone: its machines run on.")
@_name_option
def kill(node: str, *, agent_only: bool, name: str) -> None:
    """Take a node's power: all on it is dead at once. Or kill the control plane."""
    from novacron.lab.orders import Strike

    _ask(name, Strike(name=node, agent_only=agent_only))
    click.echo(f"{node}: killed; start it with: novacron lab restart {node}")


@lab.command()
@click.argument("node", metavar="NODE|server")
@click.option("--agent", "agent_only", is_flag=True, help="Its agent alone: its machines run on.")
@_name_option
def restart(node: str, *, agent_only: bool, name: str) -> None:
    """Take a node's power and give it back, or just give it back. Or the same with the control plane."""
    from novacron.lab.orders import Restart

    _ask(name, Restart(name=node, agent_only=agent_only))
    click.echo(f"{node}: started")


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@_name_option
@click.argument("node", metavar="NODE|fabric")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, node: str, command: tuple[str, ...]) -> None:
    """Run a command in a node, as one of its processes, or in the network where the clients are."""
    from novacron.lab import standing

    sys.exit(standing.run_in(_path(name), node, command))


def _path(name: str) -> Path:
    from novacron.lab.lab import usual_path

    if _NAME.match(name) is None:
        raise click.BadParameter(f"{name!r} is no name for a lab: give lower-case letters, digits and '-'")
    return usual_path(name)


def _ask(name: str, order: Order) -> Status:
    from novacron.lab.orders import ask

    return ask(_path(name), order)


def _plain_link() -> LinkState:
    from novacron.lab.links import LinkState

    return LinkState()


def _link_changes(
    latency_s: float | None, jitter_s: float | None, loss: float | None, rate: int | None
) -> dict[str, Any]:
    """As `orders.Bend` has the words; only what was given."""
    given = {
        "latency_ms": None if latency_s is None else latency_s * 1e3,
        "jitter_ms": None if jitter_s is None else jitter_s * 1e3,
        "loss": loss,
        "rate_bit_per_s": None if rate is None else rate * 8,
    }
    return {key: value for key, value in given.items() if value is not None}


def _columns() -> list[Column[NodeStatus]]:
    from novacron.cli.output import Column

    def in_ms(value: float) -> str:
        return f"{value:g} ms" if value else "-"

    return [
        Column("NODE", lambda one: one.name),
        Column("ADDRESS", lambda one: one.address),
        Column("POWER", lambda one: "on" if one.power else "off"),
        Column("AGENT", lambda one: "runs" if one.agent else "dead"),
        Column("LINK", lambda one: "unplugged" if one.link.unplugged else "cut" if one.link.cut else "up"),
        Column("LATENCY", lambda one: in_ms(one.link.latency_ms)),
        Column("JITTER", lambda one: in_ms(one.link.jitter_ms)),
        Column("LOSS", lambda one: f"{one.link.loss * 100:g} %" if one.link.loss else "-"),
        Column(
            "RATE", lambda one: f"{(one.link.rate_bit_per_s or 0) / 1e6:g} Mbit/s" if one.link.rate_bit_per_s else "-"
        ),
        Column("PID", lambda one: str(one.pid or "-"), wide=True),
    ]


def _remarks(seen: Status) -> list[str]:
    parted = [f"{one} and {other} do not hear each other" for one, other in seen.parted]
    return [*parted, *([] if seen.serving else ["the control plane is dead: novacron lab restart server"])]


def _remember(ctx: click.Context, name: str, status: Status) -> None:
    from novacron.cli import contexts

    file = session_of(ctx).config_file
    kept = contexts.read(file)
    made = contexts.with_context(kept, f"lab-{name}", contexts.Context(status.server, status.token_file))
    contexts.write(file, contexts.Contexts(kept.current, made.contexts))


def _forget(ctx: click.Context, name: str) -> None:
    from novacron.cli import contexts

    file = session_of(ctx).config_file
    kept = contexts.read(file)
    rest = {key: one for key, one in kept.contexts.items() if key != f"lab-{name}"}
    if rest != kept.contexts:
        contexts.write(file, contexts.Contexts("" if kept.current == f"lab-{name}" else kept.current, rest))


def _tell(name: str, status: Status) -> None:
    ours = "" if name == "demo" else f" --name {name}"
    lines = [
        f"lab {name}: {len(status.nodes)} nodes, API at {status.server}",
        "try",
        f"  novacron --context lab-{name} node list",
        f"  novacron --context lab-{name} vm list",
        f"  novacron lab status{ours}",
    ]
    if status.privileged:
        lines += [
            f"  novacron lab link node-1 --latency 5ms --loss 0.1%{ours}",
            f"  novacron lab kill node-1{ours}",
            f"  novacron lab exec{ours} node-1 -- ip address",
        ]
    click.echo("\n".join([*lines, f"  novacron lab down{ours}"]))
