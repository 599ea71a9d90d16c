"""`novacron image build`: images made on the machine where the command runs, then sent like any other."""

from __future__ import annotations

import contextlib

import click

from novacron.cli.image import described
from novacron.cli.options import SIZE, asks, prints
from novacron.cli.session import Session


@click.command()
@click.argument("name", default="")
@click.option("--suite", default="bookworm", show_default=True, metavar="NAME", help="The release.")
@click.option("--mirror", default="", metavar="URL", help="Where packages come from; without it, where apt's do.")
@click.option("--package", "packages", metavar="NAME", multiple=True, help="Install this too. Repeatable.")
@click.option("--size", "size_bytes", type=SIZE, default="2GiB", show_default=True, metavar="SIZE", help="Of its disk.")
@described
@prints
@asks
def debian(
    session: Session,
    name: str,
    suite: str,
    mirror: str,
    packages: tuple[str, ...],
    size_bytes: int,
    labels: tuple[tuple[str, str], ...],
    description: str,
    tags: tuple[str, ...],
) -> None:
    """Build a Debian that cloud-init sets up, and make it an image. NAME: debian-<suite> when left out.

    Needs root on this machine, mmdebstrap (or debootstrap), mkfs.ext4, qemu-img and a Debian mirror; takes a minute.

    \b
    sudo novacron image build debian --package nginx --tag debian:latest
    """
    from novacron.cli.debian import Wish, built
    from novacron.cli.fill import fill
    from novacron.cli.progress import Stage, progress
    from novacron.client import images

    called = name or f"debian-{suite}"
    wish = Wish(suite=suite, mirror=mirror, packages=packages, size_bytes=size_bytes)
    with session.connect() as nova, contextlib.ExitStack() as stack:
        nova.do(images.search(limit=1))  # before a minute is spent: does it answer?
        with progress() as show:
            made = stack.enter_context(built(wish, lambda said: show(Stage(f"{called}: {said}"))))
        files = {"disk": made.disk, "kernel": made.kernel, "initrd": made.initrd}
        image = images.ImageCreate(name=called, description=description, labels=dict(labels), cmdline=made.cmdline)
        ready = fill(nova, image, files, tags)
    session.printer.done(ready, f"{ready.name}: {ready.state}", lambda one: one.name)
