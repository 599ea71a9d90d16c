"""The ROM guest as an image of a server."""

from __future__ import annotations

from pathlib import Path

from novacron.client import images
from novacron.client.asynchronous import AsyncClient
from novacron.model.image import FileRole


async def an_image(client: AsyncClient, name: str, guest: Path) -> None:
    """Sealed; it is this ROM and nothing else."""
    await client.do(images.create(images.ImageCreate(name=name)))
    await client.upload(name, FileRole.FIRMWARE, guest)
    await client.do(images.seal(name))
