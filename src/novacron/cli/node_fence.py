"""`novacron node fence-device` and `node confirm-off`: a node's power from outside, and a word that it is off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import FILE, TIME, asks, confirm, confirms, prints
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.client.fencing import ConfirmedOff, FenceDevice, OnHold, Reading

MAX_PASSWORD_BYTES = 1024
NODE = click.argument("node", metavar="NODE", shell_complete=names("nodes"))


@click.group("fence-device")
def fence_device() -> None:
    """Say how a node's power is switched off from outside, so that its VMs need not wait for its time to be over."""


@fence_device.command("set")
@NODE
@click.option("--kind", type=click.Choice(("redfish", "ipmi")), required=True, help="What the BMC speaks.")
@click.option("--address", required=True, help="https://host[:port] for redfish, host[:port] for ipmi.")
@click.option("--user", required=True, help="Who may read and switch the power there.")
@click.option("--password-file", type=FILE, required=True, help="Holds the password, alone on its first line.")
@click.option(
    "--system", default="", metavar="PATH", help="Of redfish: which system the node is, if there are several."
)
@click.option(
    "--fingerprint",
    default="",
    metavar="SHA256",
    help="Of redfish: of the certificate it shows; default: a CA vouches.",
)
@prints
@asks
def set_device(
    session: Session, node: str, kind: str, address: str, user: str, password_file: Path, system: str, fingerprint: str
) -> None:
    """Set a node's fence device. Nothing is asked of it: run `test` next, and see that it is this node's power.

    \b
    openssl s_client -connect bmc-1:443 </dev/null | openssl x509 -noout -fingerprint -sha256
    novacron node fence-device set node-1 --kind redfish --address https://bmc-1 --user novacron \\
        --password-file bmc.password --fingerprint 5F:3A:…
    """
    from novacron.client import fencing

    wish = fencing.FenceDeviceSet(
        kind=kind,
        address=address,
        user=user,
        password=_password(password_file),
        system=system,
        fingerprint=fingerprint,
    )
    with session.connect() as nova:
        made = nova.do(fencing.set_device(node, wish))
    session.printer.done(made, f"{made.node}: its power is reached by {made.kind} at {made.address}", _name)


@fence_device.command()
@NODE
@prints
@asks
def show(session: Session, node: str) -> None:
    """Show how a node's power is reached. Its password is not shown."""
    from novacron.client import fencing

    with session.connect() as nova:
        session.printer.one(nova.do(fencing.device(node)), _details, _name)


@fence_device.command()
@NODE
@confirms
@asks
def remove(session: Session, node: str, yes: bool) -> None:
    """Reach a node's power no more."""
    from novacron.cli import safe
    from novacron.client import fencing

    confirm(f"Remove the fence device of node {safe.line(node)}?", yes=yes)
    with session.connect() as nova:
        nova.do(fencing.remove_device(node))
    click.echo(safe.line(f"{node}: its power is reached no more"))


@fence_device.command()
@NODE
@prints
@asks
def test(session: Session, node: str) -> None:
    """Read the state of a node's power. Nothing is switched."""
    from novacron.client import fencing

    with session.connect() as nova:
        read = nova.do(fencing.power(node))
    session.printer.done(
        read, f"{read.node}: {read.power}" + (f": {read.problem.message}" if read.problem else ""), _on
    )
    if read.problem is not None:
        raise click.exceptions.Exit(1)


@click.command("confirm-off")
@NODE
@click.option("--with-unprotected", is_flag=True, help="Start its VMs without --ha restart elsewhere, too.")
@confirms
@prints
@asks
def confirm_off(session: Session, node: str, with_unprotected: bool, yes: bool) -> None:
    """Say that a silent node is off: its VMs are started elsewhere. Look first: if it is not off, they run twice.

    Off a terminal nothing is done without --yes.
    """
    from novacron.cli import safe
    from novacron.client import fencing

    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: give --yes once somebody has seen that it is off")
    confirm(f"Have you seen that node {safe.line(node)} is off? If it is not, its VMs run twice.", yes=yes)
    with session.connect() as nova:
        said = nova.do(fencing.confirm_off(node, with_unprotected=with_unprotected))
    session.printer.done(said, f"{said.node}: off ({said.reason}); its VMs are started elsewhere", _on)


@click.command()
@NODE
@click.option(
    "--for", "for_s", type=TIME, metavar="TIME", required=True, help="How long its agent may be away; up to 15m."
)
@prints
@asks
def hold(session: Session, node: str, for_s: float) -> None:
    """Leave a node alone while its agent is away for an upgrade: its VMs with --ha restart run on meanwhile.

    Its agent's return ends it. If the node fails meanwhile, its VMs are started elsewhere that much later.
    """
    from novacron.cli import amounts
    from novacron.client import fencing

    with session.connect() as nova:
        held = nova.do(fencing.hold(node, for_s))
    session.printer.done(held, f"{held.node}: left alone for {amounts.seconds(held.for_s)}", _on)


def _password(file: Path) -> str:
    """The first line of a file. :raise BadParameter: it holds none."""
    try:
        with file.open("rb") as opened:
            words = opened.read(MAX_PASSWORD_BYTES).splitlines()
        if words and words[0]:
            return words[0].decode()
    except (OSError, UnicodeDecodeError) as wrong:
        raise click.BadParameter(f"cannot read {file}: {type(wrong).__name__}", param_hint="--password-file") from wrong
    raise click.BadParameter(f"{file} holds no password", param_hint="--password-file")


def _name(one: FenceDevice) -> str:
    return one.node


def _on(one: Reading | ConfirmedOff | OnHold) -> str:
    return one.node


def _details(one: FenceDevice) -> Iterator[tuple[str, str]]:
    yield "Node", one.node
    yield "Kind", one.kind
    yield "Address", one.address
    yield "User", one.user
    if one.system:
        yield "System", one.system
    if one.fingerprint:
        yield "Certificate", one.fingerprint
    yield "Set", f"{one.updated_at:%Y-%m-%d %H:%M:%S} UTC"
