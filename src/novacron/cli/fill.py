"""An image made whole: its record, its files, its seal; taken back when any of that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts, safe
from novacron.cli.progress import Show, Stage, progress
from novacron.client import images
from novacron.errors import NovaCronError
from novacron.model.image import FileRole

if TYPE_CHECKING:
    from novacron.client.images import Image, ImageCreate
    from novacron.client.sync import Client


def fill(nova: Client, wish: ImageCreate, files: Mapping[str, Path]) -> Image:
    """The image, ready. `files`: by role.

    :raise NovaCronError: what was refused; the image is deleted again, or it is said that it could not be.
    """
    made = nova.do(images.create(wish))
    try:
        with progress() as show:
            for role, file in files.items():
                _send(nova, made, FileRole(role), file, show)
            show(Stage(f"{wish.name}: inspecting"))
            return nova.do(images.seal(made.id))
    except BaseException:
        _take_back(nova, made)
        raise


def _send(nova: Client, image: Image, role: FileRole, file: Path, show: Show) -> None:
    def on_progress(sent: int, of: int) -> None:
        words = f"{amounts.size(sent)} of {amounts.size(of)}"
        show(Stage(f"{image.name}: sending {role.value}", words, float(sent), float(of)))

    nova.upload(image.id, role, file, on_progress)


def _take_back(nova: Client, image: Image) -> None:
    try:
        nova.do(images.delete(image.id))
    except NovaCronError as wrong:
        click.echo(
            safe.line(f"note: the unfinished image could not be removed: {wrong.message}; image delete {image.name}"),
            err=True,
        )
