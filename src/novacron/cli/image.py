"""`novacron image`: keep what VMs are made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.options import FILE, PAIR, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.images import Image

IMAGE = click.argument("image", metavar="IMAGE", shell_complete=names("images"))


@click.group()
def image() -> None:
    """Keep what VMs are made from. IMAGE is a name or an id."""


@image.command("list")
@selects
@click.option("--state", type=click.Choice(["pending", "ready"]), help="Only those in this state.")
@prints
@asks
def list_images(session: Session, selector: tuple[str, ...], state: str | None) -> None:
    """List images, oldest first."""
    from novacron.client import images

    with session.connect() as nova:
        session.printer.many(nova.each(images.search(labels=selector, state=state or "")), _columns(), _name)


@image.command()
@IMAGE
@prints
@asks
def show(session: Session, image: str) -> None:
    """Show one image and its files."""
    from novacron.client import images

    with session.connect() as nova:
        session.printer.one(nova.do(images.get(image)), _details, _name)


@image.command()
@click.argument("name")
@click.option("--disk", type=FILE, metavar="FILE", help="A qcow2 or raw disk that boots by itself.")
@click.option("--kernel", type=FILE, metavar="FILE", help="A kernel, booted directly.")
@click.option("--initrd", type=FILE, metavar="FILE", help="With --kernel: its initial RAM disk.")
@click.option("--firmware", type=FILE, metavar="FILE", help="A firmware of its own.")
@click.option("--cmdline", default="", metavar="TEXT", help="With --kernel: its command line.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(
    session: Session,
    name: str,
    cmdline: str,
    labels: tuple[tuple[str, str], ...],
    description: str,
    **files: Path | None,
) -> None:
    """Make an image from files: they are sent, compared by sha256 and inspected. When that fails, it is taken back.

    \b
    novacron image create debian-12 --disk debian-12.qcow2
    novacron image create tiny --kernel vmlinuz --initrd initrd.gz --cmdline console=ttyS0
    """
    given = {role: file for role, file in files.items() if file is not None}
    if not given.keys() & {"disk", "kernel", "firmware"}:
        raise click.UsageError("an image needs --disk, --kernel or --firmware to start from")
    if "kernel" not in given and (cmdline or "initrd" in given):
        raise click.UsageError("--initrd and --cmdline go with --kernel")
    from novacron.cli.fill import fill
    from novacron.client import images

    wish = images.ImageCreate(name=name, description=description, labels=dict(labels), cmdline=cmdline)
    with session.connect() as nova:
        made = fill(nova, wish, given)
    session.printer.done(made, f"{made.name}: {made.state}, {_size(made)}", _name)


@image.command()
@IMAGE
@confirms
@asks
def delete(session: Session, image: str, yes: bool) -> None:
    """Delete an image that no VM was made from."""
    from novacron.cli import safe
    from novacron.client import images

    confirm(f"Delete image {safe.line(image)}?", yes=yes)
    with session.connect() as nova:
        nova.do(images.delete(image))
    click.echo(safe.line(f"{image}: deleted"))


def _name(one: Image) -> str:
    return one.name


def _size(one: Image) -> str:
    from novacron.cli import amounts

    return amounts.size(sum(file.size_bytes for file in one.files))


def _columns() -> list[Column[Image]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column
    from novacron.cli.vm_show import labels

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("STATE", lambda one: one.state),
        Column("FILES", lambda one: ", ".join(file.role for file in one.files) or "-"),
        Column("SIZE", _size),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("DESCRIPTION", lambda one: one.description or "-", wide=True),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Image) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts
    from novacron.cli.vm_show import labels

    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "State", one.state
    if one.cmdline:
        yield "Kernel command line", one.cmdline
    for file in one.files:
        words = [amounts.size(file.size_bytes), file.format or ""]
        words.append(f"{amounts.size(file.virtual_size_bytes)} to the guest" if file.virtual_size_bytes else "")
        yield file.role.capitalize(), f"{', '.join(word for word in words if word)}\nsha256 {file.digest}"
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
