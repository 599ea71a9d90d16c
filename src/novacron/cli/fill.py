"""An image made whole: its record, its files, its seal, its tags; taken back when what is sent is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novacron.cli import amounts, safe
from novacron.cli.progress import Show, Stage, progress
from novacron.client import images
from novacron.errors import DeadlineExceeded, NovaCronError, Unavailable
from novacron.model.image import FileRole

if TYPE_CHECKING:
    from novacron.client.images import Image, ImageCreate, ImageImport
    from novacron.client.sync import Client


def fill(nova: Client, wish: ImageCreate, files: Mapping[str, Path], tags: Sequence[str] = ()) -> Image:
    """The image, ready. `files`: by role.

    :raise NovaCronError: what was refused; the image is deleted again, or it is said that it could not be. When the
    server cannot be reached any more the image stays as it is, and how to go on is said.
    """
    made = nova.do(images.create(wish))
    try:
        return complete(nova, made, files, tags)
    except (Unavailable, DeadlineExceeded):
        click.echo(safe.line(f"note: what was sent is kept for a day; go on: image upload {made.name}"), err=True)
        raise
    except BaseException:
        _take_back(nova, made)
        raise


def complete(nova: Client, image: Image, files: Mapping[str, Path], tags: Sequence[str]) -> Image:
    """A pending image with these files, sealed and tagged. :raise NovaCronError: what was refused."""
    with progress() as show:
        for role, file in files.items():
            _send(nova, image, FileRole(role), file, show)
        show(Stage(f"{image.name}: inspecting"))
        return _finish(nova, image, tags)


def fetch(nova: Client, wish: ImageCreate, source: ImageImport, tags: Sequence[str]) -> Image:
    """The image, ready, with a disk the server fetched. :raise NovaCronError: as `fill`."""
    made = nova.do(images.create(wish))
    try:
        with progress() as show:
            begun = nova.do(images.import_file(made.id, FileRole.DISK, source))
            nova.wait_image_file(begun, FileRole.DISK, on_update=_shows(show))
            return _finish(nova, made, tags)
    except (Unavailable, DeadlineExceeded):
        click.echo(safe.line(f"note: the import goes on; then: image seal {made.name}"), err=True)
        raise
    except BaseException:
        _take_back(nova, made)
        raise


def _finish(nova: Client, image: Image, tags: Sequence[str]) -> Image:
    ready = nova.do(images.seal(image.id))
    return nova.do(images.update(image.id, images.ImageUpdate(tags=list(tags)))) if tags else ready


def _shows(show: Show) -> Callable[[Image], None]:
    def on_update(image: Image) -> None:
        for task in image.tasks:
            words = amounts.size(task.done_bytes) + (f" of {amounts.size(task.size_bytes)}" if task.size_bytes else "")
            of = float(task.size_bytes) or None
            show(Stage(f"{image.name}: {task.phase} {task.role}", words, float(task.done_bytes), of))

    return on_update


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
