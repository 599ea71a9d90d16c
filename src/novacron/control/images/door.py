"""Where agents fetch image files from the server: by digest, whole or from an offset on, shown what a line is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from novacron.control.doorman import Doorman
from novacron.control.images.catalogue import is_a_volumes
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.errors import NotFound
from novacron.model.image import ImageState
from novacron.wire.storage import IMAGES_PATH

PIECE_BYTES = 1 << 20


class _Answer(FileResponse):
    chunk_size = PIECE_BYTES


def router(records: Records, pool_dir: Path, doorman: Doorman) -> APIRouter:
    """The one path. Only files of sealed images, and those that volumes still stand on, are given."""
    routes = APIRouter()

    @routes.get(IMAGES_PATH + "{digest}", include_in_schema=False)
    async def image_file(request: Request, digest: str) -> Response:
        doorman.at_door(request)
        if not is_given(records, digest):
            raise NotFound("no such image file")
        path = pool_dir / "images" / digest
        if not await asyncio.to_thread(path.is_file):
            raise NotFound("the image file is missing from the pool")
        return _Answer(path, media_type="application/octet-stream", headers={"etag": f'"{digest}"'})

    return routes


def is_given(records: Records, digest: str) -> bool:
    """Whether a node may have the file: a sealed image has it, or a volume stands on it."""
    images = (stored.record for stored in records.all(IMAGES))
    if any(file.digest == digest for image in images if image.state is ImageState.READY for file in image.files):
        return True
    return bool(digest) and is_a_volumes(records, digest)
