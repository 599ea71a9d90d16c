"""`novacron image`: keep what VMs are made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli.complete import names
from novacron.cli.lazy import LazyGroup
from novacron.cli.options import FILE, PAIR, F, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.images import Image

ROLES = ("disk", "kernel", "initrd", "firmware", "cdrom")
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


def described(function: F) -> F:
    """What is said of a new image beside its files."""
    for option in (
        click.option("--tag", "tags", metavar="NAME:TAG", multiple=True, help="Repeatable; taken from who has it."),
        click.option("--description", default="", metavar="TEXT", help="For people."),
        click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable."),
    ):
        function = option(function)
    return function


@image.command()
@click.argument("name")
@click.option("--disk", type=FILE, metavar="FILE", help="A qcow2 or raw disk that boots by itself.")
@click.option("--kernel", type=FILE, metavar="FILE", help="A kernel, booted directly.")
@click.option("--initrd", type=FILE, metavar="FILE", help="With --kernel: its initial RAM disk.")
@click.option("--firmware", type=FILE, metavar="FILE", help="A firmware of its own.")
@click.option("--cdrom", type=FILE, metavar="FILE", help="An ISO image, for CD-ROM drives.")
@click.option("--cmdline", default="", metavar="TEXT", help="With --kernel: its command line.")
@described
@prints
@asks
def create(
    session: Session,
    name: str,
    cmdline: str,
    labels: tuple[tuple[str, str], ...],
    description: str,
    tags: tuple[str, ...],
    **files: Path | None,
) -> None:
    """Make an image from files: they are sent, compared by sha256 and inspected. When that fails, it is taken back.

    A disk may be qcow2 or raw; a streamOptimized VMDK or an OVA is converted by the server. A large file outlives
    broken connections.

    \b
    novacron image create debian-12 --disk debian-12.qcow2
    novacron image create debian-12.2 --disk debian-12.2.qcow2 --tag debian:latest
    novacron image create tiny --kernel vmlinuz --initrd initrd.gz --cmdline console=ttyS0
    """
    given = {role: file for role, file in files.items() if file is not None}
    if not given.keys() & {"disk", "kernel", "firmware", "cdrom"}:
        raise click.UsageError("an image needs --disk, --kernel, --firmware or --cdrom to start from")
    if "kernel" not in given and (cmdline or "initrd" in given):
        raise click.UsageError("--initrd and --cmdline go with --kernel")
    from novacron.cli.fill import fill
    from novacron.client import images

    wish = images.ImageCreate(name=name, description=description, labels=dict(labels), cmdline=cmdline)
    with session.connect() as nova:
        made = fill(nova, wish, given, tags)
    session.printer.done(made, f"{made.name}: {made.state}, {_size(made)}", _name)


@image.command("import")
@click.argument("name")
@click.argument("url")
@click.option("--sha256", metavar="HEX", help="What the file must have; without it whatever comes is taken.")
@described
@prints
@asks
def import_(
    session: Session,
    name: str,
    url: str,
    sha256: str | None,
    labels: tuple[tuple[str, str], ...],
    description: str,
    tags: tuple[str, ...],
) -> None:
    """Make an image from a disk the server fetches over https, and wait for it.

    \b
    novacron image import debian-12 https://images.example/debian-12.qcow2 --sha256 9f86d0...
    """
    from novacron.cli.fill import fetch
    from novacron.client import images

    wish = images.ImageCreate(name=name, description=description, labels=dict(labels))
    with session.connect() as nova:
        made = fetch(nova, wish, images.ImageImport(url=url, sha256=sha256), tags)
    session.printer.done(made, f"{made.name}: {made.state}, {_size(made)}", _name)


@image.command()
@IMAGE
@click.option("--disk", type=FILE, metavar="FILE", help="Its disk.")
@click.option("--kernel", type=FILE, metavar="FILE", help="Its kernel.")
@click.option("--initrd", type=FILE, metavar="FILE", help="Its initial RAM disk.")
@click.option("--firmware", type=FILE, metavar="FILE", help="Its firmware.")
@prints
@asks
def upload(session: Session, image: str, **files: Path | None) -> None:
    """Send files of an image that is still pending, then seal it: goes on with what broke off.

    \b
    novacron image upload debian-12 --disk debian-12.qcow2
    """
    from novacron.cli.fill import complete
    from novacron.client import images

    given = {role: file for role, file in files.items() if file is not None}
    with session.connect() as nova:
        made = complete(nova, nova.do(images.get(image)), given, ())
    session.printer.done(made, f"{made.name}: {made.state}, {_size(made)}", _name)


@image.command()
@IMAGE
@click.option("--role", type=click.Choice(ROLES), default="disk", show_default=True, help="Which of its files.")
@click.option("--output", default="", metavar="FILE", help="Where to, - for stdout; default: the image's name, here.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@asks
def download(session: Session, image: str, role: str, output: str, force: bool) -> None:
    """Fetch a file of an image. It goes on through broken lines and is compared by sha256.

    FILE is there only when all of it came and is right. What goes to stdout is known to be right when the command
    ends well.

    \b
    novacron image download debian-12
    novacron image download tiny --role kernel --output vmlinuz
    novacron image download debian-12 --output - | zstd > debian-12.qcow2.zst
    """
    from novacron.cli import download as doing
    from novacron.cli import safe
    from novacron.model.image import FileRole

    if output == "-":
        doing.refuse_terminal()
        with session.connect() as nova:
            doing.to_stdout(nova, image, FileRole(role))
        return
    with session.connect() as nova:
        said = doing.into_file(nova, image, FileRole(role), output, overwrite=force)
    click.echo(safe.line(said))


@image.command()
@IMAGE
@prints
@asks
def seal(session: Session, image: str) -> None:
    """All files of an image are there: let VMs be made from it."""
    from novacron.client import images

    with session.connect() as nova:
        made = nova.do(images.seal(image))
    session.printer.done(made, f"{made.name}: {made.state}, {_size(made)}", _name)


@image.command()
@IMAGE
@click.option("--name", "new_name", metavar="NAME", help="Rename it.")
@click.option("--description", metavar="TEXT", help="For people.")
@click.option("--tag", "tags", metavar="NAME:TAG", multiple=True, help="Give it this tag; taken from who has it.")
@click.option("--untag", "untags", metavar="NAME:TAG", multiple=True, help="Take this tag away.")
@click.option("--protect/--unprotect", "protected", default=None, help="Refuse, or allow, to delete it.")
@prints
@asks
def update(
    session: Session,
    image: str,
    new_name: str | None,
    description: str | None,
    tags: tuple[str, ...],
    untags: tuple[str, ...],
    protected: bool | None,
) -> None:
    """Change an image's name, description, tags or protection. Its files never change.

    \b
    novacron image update debian-12.2 --tag debian:latest --protect
    """
    from msgspec import UNSET

    from novacron.client import images

    with session.connect() as nova:
        now = nova.do(images.get(image))
        kept = [tag for tag in now.tags if tag not in untags]
        change = images.ImageUpdate(
            name=UNSET if new_name is None else new_name,
            description=UNSET if description is None else description,
            tags=[*kept, *(tag for tag in tags if tag not in kept)] if tags or untags else UNSET,
            protected=UNSET if protected is None else protected,
        )
        made = nova.do(images.update(now.id, change, revision=now.revision))
    session.printer.done(made, f"{made.name}: updated", _name)


@image.group(cls=LazyGroup, lazy={"debian": ("novacron.cli.image_build:debian", "A Debian for cloud-init.")})
def build() -> None:
    """Build an image on this machine and send it."""


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
        Column("TAGS", lambda one: ", ".join(one.tags) or "-"),
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
    for task in one.tasks:
        said = f"{task.phase}: {task.problem.message}" if task.problem else task.phase
        yield task.role.capitalize(), f"{said} {task.url}".strip()
    if one.hints.vcpus or one.hints.memory_mib:
        yield "Asks for", f"{one.hints.vcpus} CPUs, {one.hints.memory_mib} MiB"
    if one.tags:
        yield "Tags", ", ".join(one.tags)
    if one.protected:
        yield "Protected", "yes"
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
