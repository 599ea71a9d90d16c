"""The path on which an image's file is fetched: streamed from the pool, whole or a part, never held in memory."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import FileResponse, Response

from novacron.control.access.guard import needs
from novacron.control.answers import problems
from novacron.control.images.arriving import OCTETS, ImageRef
from novacron.control.images.service import ImageService
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.errors import NotFound
from novacron.model.image import FileRole, file_of

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})\Z", re.ASCII)
_BYTES = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": _BYTES},
    206: {"description": "The part named by Range", "content": _BYTES},
}


def leaving(routes: APIRouter, records: Records, service: ImageService) -> None:
    """The path on which files leave."""

    @routes.get(
        "/images/{image}/files/{role}",
        dependencies=[needs("images.read")],
        responses=problems(404) | _ANSWERS,
        response_class=Response,
    )
    async def get_image_file(
        request: Request, image: ImageRef, role: Annotated[FileRole, Path(description="Which file.")]
    ) -> Response:
        """The bytes of one of an image's files. Takes one Range, `bytes=N-` or `bytes=N-M`; its ETag is its sha256."""
        found = records.find(IMAGES, image).record
        file = file_of(found, role)
        if file is None:
            raise NotFound(f"image {found.name} has no {role.value} file")
        path = await service.shelf.held(file.digest)
        if not _fits(
            request.headers.get("range", ""), file.size_bytes
        ):  # one that does not is left aside, as HTTP allows
            kept = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
            request.scope["headers"] = kept
        headers = {"etag": f'"{file.digest}"'}
        return FileResponse(path, media_type=OCTETS, headers=headers, filename=f"{found.name}.{role.value}")


def _fits(asked: str, size_bytes: int) -> bool:
    match = _RANGE.match(asked)
    if match is None or int(match[1]) >= size_bytes:
        return False
    return not match[2] or int(match[2]) >= int(match[1])
