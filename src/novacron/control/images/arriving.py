"""The paths on which an image's files come: sent whole, sent in pieces, or fetched from elsewhere; and the seal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Path, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import PREFIX, IfMatch, problems, record
from novacron.control.body import claim
from novacron.control.images.service import ImageService
from novacron.control.images.uploads import Upload
from novacron.control.images.view import ImageView
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import IMAGES
from novacron.errors import InvalidInput, Malformed
from novacron.model.image import FileRole
from novacron.wire.rest import images as wire

ImageRef = Annotated[wire.ImageRef, Path(description="Id, name or tag of an image.")]
UploadId = Annotated[str, Path(description="Id of an upload.", max_length=63, pattern="^[0-9a-f-]+$")]
Role = Annotated[FileRole, Path(description="What the file is for.")]
Sha256 = Annotated[
    str | None,
    Header(
        alias="X-Content-SHA256",
        description="The sha256 the file must have, in hex.",
        pattern="^[0-9a-fA-F]{64}$",
    ),
]
Offset = Annotated[int, Header(alias="Upload-Offset", description="Where in the file the body begins.", ge=0)]

OCTETS = "application/octet-stream"
TUS = "application/offset+octet-stream"
_ONE = "/images/{image}/uploads/{upload}"
_encode = msgspec.json.Encoder().encode
_OFFSET = {"Upload-Offset": {"description": "How much has come.", "schema": {"type": "integer"}}}


def _body(kind: str, what: str) -> dict[str, Any]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "description": what, "content": {kind: schema}}}


def filling(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    """Add them all."""
    _whole(routes, service, view)
    _pieces_begin(routes, service)
    _pieces_end(routes, service, view)
    _elsewhere(routes, service, view)


def _whole(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    @routes.put(
        "/images/{image}/files/{role}",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507) | {202: {"model": wire.Image}},
        response_model=wire.Image,
        openapi_extra=_body(OCTETS, "The file's bytes as they are: no form, no encoding."),
    )
    async def put_image_file(
        request: Request, image: ImageRef, role: Role, held: IfMatch, sha256: Sha256 = None
    ) -> Response:
        """Send one file of a pending image. It is inspected before anything else opens it.

        Disks may be raw or qcow2 version 3, and must not need another file; a streamOptimized VMDK, or an OVA with one
        in it, is converted to qcow2 (202: the image's `tasks` say when).
        """
        _check_type(request, OCTETS)
        announced = request.headers.get("content-length", "0")
        outcome = await service.put_file(
            image,
            role,
            _pieces(request),
            expected=sha256.lower() if sha256 else "",
            announced_bytes=int(announced) if announced.isascii() and announced.isdigit() else 0,
            held=held,
        )
        return answer(request, view, outcome)

    @routes.delete(
        "/images/{image}/files/{role}",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412),
        response_model=wire.Image,
    )
    async def delete_image_file(request: Request, image: ImageRef, role: Role, held: IfMatch) -> Response:
        """Take a file of a pending image away, and end the work on it: an import stops."""
        return answer(request, view, await service.remove_file(image, role, held))

    @routes.post(
        "/images/{image}/seal",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412),
        response_model=wire.Image,
    )
    async def seal_image(request: Request, image: ImageRef, held: IfMatch, once: Asked) -> Response:
        """All files are there: VMs may be made from it now. Its files never change after this."""
        return answer(request, view, await once.perform(IMAGES, lambda: service.seal(image, held, once)))


def _pieces_begin(routes: APIRouter, service: ImageService) -> None:
    @routes.post(
        "/images/{image}/files/{role}/upload",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507),
        response_model=wire.Upload,
        status_code=201,
    )
    async def start_upload(
        image: ImageRef, role: Role, body: wire.UploadCreate, held: IfMatch, _once: Asked
    ) -> Response:
        """Begin to send a file in pieces, or go on: an unfinished upload of the same file is answered again.

        Send the pieces with PATCH, then POST `finish`. What nobody goes on with for 24 hours is swept away.
        """
        upload, offset = await service.start_upload(image, role, body, held)
        place = {"location": f"{PREFIX}/images/{upload.image_id}/uploads/{upload.id}"}
        return Response(_shown(upload, offset), 201, {**_at(offset), **place}, "application/json")

    @routes.get(_ONE, dependencies=[needs("images.read")], responses=problems(404), response_model=wire.Upload)
    async def get_upload(image: ImageRef, upload: UploadId) -> Response:
        """How far an upload has come, also in `Upload-Offset`."""
        found, offset = await service.find_upload(image, upload)
        return Response(_shown(found, offset), 200, _at(offset), "application/json")

    @routes.patch(
        _ONE,
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507) | {204: {"headers": _OFFSET}},
        response_model=None,
        status_code=204,
        openapi_extra=_body(OCTETS, "The file's bytes from Upload-Offset on."),
    )
    async def append_upload(
        request: Request, image: ImageRef, upload: UploadId, offset: Offset, held: IfMatch
    ) -> Response:
        """Send a piece of the file. What arrived before a line broke is kept: ask for the offset and go on.

        409 says the offset to go on from. A second writer takes over from the first.
        """
        _check_type(request, OCTETS, TUS)
        body = claim(request)
        try:
            came = await service.append(image, upload, offset, body or _pieces(request), held)
        finally:
            if body is not None:
                body.discard()
        return Response(None, 204, _at(came))


def _pieces_end(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    @routes.post(
        _ONE + "/finish",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507) | {202: {"model": wire.Image}},
        response_model=wire.Image,
    )
    async def finish_upload(
        request: Request,
        image: ImageRef,
        upload: UploadId,
        held: IfMatch,
        once: Asked,
        body: wire.UploadFinish | None = None,
    ) -> Response:
        """All has come: it is compared with its sha256, inspected, and becomes the image's file.

        202 when it has to be converted first.
        """
        do = lambda: service.finish_upload(image, upload, body.sha256 if body else "", held, once)  # noqa: E731
        return answer(request, view, await once.perform(IMAGES, do))

    @routes.delete(
        _ONE,
        dependencies=[needs("images.create")],
        responses=problems(404, 412),
        response_model=None,
        status_code=204,
    )
    async def delete_upload(image: ImageRef, upload: UploadId, _held: IfMatch) -> Response:
        """Give an upload up."""
        await service.drop_upload(image, upload)
        return Response(status_code=204)


def _elsewhere(routes: APIRouter, service: ImageService, view: ImageView) -> None:
    @routes.post(
        "/images/{image}/files/{role}/import",
        dependencies=[needs("images.create")],
        responses=problems(404, 409, 412, 413, 507),
        response_model=wire.Image,
        status_code=202,
    )
    async def import_image_file(
        request: Request, image: ImageRef, role: Role, body: wire.ImageImport, held: IfMatch, once: Asked
    ) -> Response:
        """Have the server fetch a file over https; the image's `tasks` show how far it is, and why it failed.

        Addresses of the server's own network are refused unless its settings allow them. DELETE the file to stop it.
        """
        do = lambda: service.import_file(image, role, body, held, once)  # noqa: E731
        return answer(request, view, await once.perform(IMAGES, do))


def answer(request: Request, view: ImageView, outcome: Outcome) -> Response:
    """An image as a write left it."""
    stored = outcome.stored
    where = {"location": f"{PREFIX}/images/{stored.record.id}"} if outcome.status == 201 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)


def _shown(upload: Upload, offset: int) -> bytes:
    return _encode({**msgspec.structs.asdict(upload), "offset_bytes": offset})


def _at(offset: int) -> dict[str, str]:
    return {"upload-offset": str(offset)}


def _check_type(request: Request, *allowed: str) -> None:
    """Forms (curl -F) would be stored with their wrapping."""
    given = request.headers.get("content-type", allowed[0]).partition(";")[0].strip().lower()
    if given not in allowed:
        raise InvalidInput.field(
            "content-type", f"is {given[:64]}, not {allowed[0]}", "send the file itself as the body"
        )


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as gone:
        raise Malformed("the upload broke off") from gone
