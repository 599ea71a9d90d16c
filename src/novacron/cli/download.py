"""A file of an image fetched into a file, or to whoever reads this program's output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts
from novacron.cli.progress import Show, Stage, progress
from novacron.client import images
from novacron.client.upload import OnProgress
from novacron.errors import InvalidInput
from novacron.model.identity import check_name
from novacron.model.image import FileRole

if TYPE_CHECKING:
    from novacron.client.images import Image
    from novacron.client.sync import Client

SUFFIXES = {"qcow2": "qcow2", "raw": "img"}  # by a disk's format


def into_file(nova: Client, ref: str, role: FileRole, target: str, *, overwrite: bool) -> str:
    """Fetch it into `target`, or when that is empty into one here, named after the image; what to say of it.

    :raise NovaCronError: it did not come; nothing is left of it.
    """
    image = nova.do(images.get(ref))
    path = Path(target or default_name(image, role))
    with progress() as show:
        file = nova.download(image.id, role, path, _shows(show, image, role), overwrite=overwrite)
    return f"{image.name}: {role.value}, {amounts.size(file.size_bytes)}, in {path}; sha256 {file.digest}"


def to_stdout(nova: Client, ref: str, role: FileRole) -> None:
    """Write its bytes to stdout. :raise NovaCronError: they did not all come, or what came is not it."""
    image = nova.do(images.get(ref))
    with progress() as show:
        nova.download_to(image.id, role, _write_out, _shows(show, image, role))


def refuse_terminal() -> None:
    """:raise click.UsageError: stdout is a terminal, which bytes of a disk would play havoc with."""
    if sys.stdout.isatty():
        raise click.UsageError("--output -: stdout is a terminal; send it on (| or >), or give --output FILE")


def default_name(image: Image, role: FileRole) -> str:
    """As which file it is kept when nobody said. A server cannot make it lead elsewhere. :raise InvalidInput"""
    format_ = next((file.format for file in image.files if file.role == role.value), None)
    return f"{check_name(image.name, 'name')}.{SUFFIXES.get(format_ or '', role.value)}"


def _shows(show: Show, image: Image, role: FileRole) -> OnProgress:
    def on_progress(got: int, of: int) -> None:
        words = f"{amounts.size(got)} of {amounts.size(of)}"
        show(Stage(f"{image.name}: fetching {role.value}", words, float(got), float(of)))

    return on_progress


def _write_out(piece: bytes) -> None:
    out = sys.stdout.buffer
    try:
        out.write(piece)
        out.flush()
    except BrokenPipeError:
        raise  # who reads has had enough: click ends the program quietly
    except OSError as wrong:
        raise InvalidInput.field("output", f"cannot write to stdout: {wrong.strerror}") from wrong
