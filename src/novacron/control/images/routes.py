"""The paths of images: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.images.service import ImageService
from novacron.control.images.view import ImageView
from novacron.control.once import Asked, Outcome
from novacron.control.store.records import IMAGES, Records
from novacron.errors import InvalidInput, Malformed
from novacron.model.image import FileRole, Image, ImageState
from novacron.wire.rest import images as wire
from novacron.wire.rest.common import Name, PageOf, Ref

ImageRef = Annotated[Ref, Path(description="Id or name of an image.")]
Role = Annotated[FileRole, Path(description="What the file is for.")]
Sha256 = Annotated[
    str | None,
    Header(
        alias="X-Content-SHA256",
        description="The sha256 the file must have, in hex.",
        pattern="^[0-9a-fA-F]{64}$",
    ),
]

OCTETS = "application/octet-stream"
_FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file's bytes as they are: no form, no encoding.",
        "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def router(records: Records, service: ImageService, view: ImageView) -> APIRouter:
    """All paths of images."""
    routes = noun("images")
    _reading(routes, records, view)
    _writing(routes, service, view)
    _filling(routes, service, view)
    return routes


def _reading(routes: APIRouter, records: Records, view: ImageView) -> None:
    @routes.get("/images", dependencies=[needs("images.read")], responses=problems(), response_model=PageOf[wire.Image])
    async def list_images(
        listed: Listed,
        name: Annotated[Name | None, Query(description="Only the image of this name.")] = None,
        state: Annotated[ImageState | None, Query(description="Only images in this state.")] = None,
    ) -> Response:
        """One page of images, oldest first."""

        def fits(image: Image) -> bool:
            return (
                (name is None or image.name == name)
                and (state is None or image.state is state)
                and listed.fits(image.labels)
            )

        found, more = records.page(IMAGES, after=listed.after, limit=listed.limit, match=fits)
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get("/images/{image}", dependencies=[needs("images.read")], responses=reads(404), response_model=wire.Image)
    async def get_image(request: Request, image: ImageRef) -> Response:
        """One image."""
        stored = records.find(IMAGES, image)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    @routes.post(
        "/images",
        dependencies=[needs("images.create")],
        responses=problems(409),
        response_model=wire.Image,
        status_code=201,
    )
    async def create_image(request: Request, body: wire.ImageCreate, once: Asked) -> Response:
        """Make an image to be filled: PUT its files next, then seal it."""
        return _answer(request, view, await once.perform(IMAGES, lambda: service.create(body, once)))

    @routes.patch(
        "/images/{image}",
        dependencies=[needs("images.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Image,
    )
    async def update_image(request: Request, image: ImageRef, body: wire.ImageUpdate, held: IfMatch) -> Response:
        """Change an image's name, description or labels."""
        return _answer(request, view, await service.update(image, body, held))

    @routes.delete(
        "/images/{image}",
        dependencies=[needs("images.delete")],
        responses=problems(404, 409, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_image(image: ImageRef, held: IfMatch) -> Response:
        """Delete an image that no VM was made from."""
        await service.delete(image, held)
        return Response(status_code=204)


def _filling(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    @routes.put(
        "/images/{image}/files/{role}",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507),
        response_model=wire.Image,
        openapi_extra=_FILE_BODY,
    )
    async def put_image_file(
        request: Request, image: ImageRef, role: Role, held: IfMatch, sha256: Sha256 = None
    ) -> Response:
        """Send one file of a pending image. It is inspected before anything else opens it.

        Disks may be raw or qcow2 version 3, and must not need another file.
        """
        _check_type(request)
        announced = request.headers.get("content-length", "0")
        outcome = await service.put_file(
            image,
            role,
            _pieces(request),
            expected=sha256.lower() if sha256 else "",
            announced_bytes=int(announced) if announced.isascii() and announced.isdigit() else 0,
            held=held,
        )
        return _answer(request, view, outcome)

    @routes.post(
        "/images/{image}/seal",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412),
        response_model=wire.Image,
    )
    async def seal_image(request: Request, image: ImageRef, held: IfMatch, once: Asked) -> Response:
        """All files are there: VMs may be made from it now. Its files never change after this."""
        return _answer(request, view, await once.perform(IMAGES, lambda: service.seal(image, held, once)))


def _answer(request: Request, view: ImageView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/images/{stored.record.id}"} if outcome.status == 201 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)


def _check_type(request: Request) -> None:
    """Forms (curl -F) would be stored with their wrapping."""
    given = request.headers.get("content-type", OCTETS).partition(";")[0].strip().lower()
    if given != OCTETS:
        raise InvalidInput.field("content-type", f"is {given[:64]}, not {OCTETS}", "send the file itself as the body")


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as gone:
        raise Malformed("the upload broke off") from gone
