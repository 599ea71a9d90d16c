"""The paths of images: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from novacron.control.access.guard import needs
from novacron.control.answers import IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.images.arriving import ImageRef, answer, filling
from novacron.control.images.leaving import leaving
from novacron.control.images.service import ImageService
from novacron.control.images.view import ImageView
from novacron.control.once import Asked
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.model.image import Image, ImageState
from novacron.wire.rest import images as wire
from novacron.wire.rest.common import Name, PageOf


def router(records: Records, service: ImageService, view: ImageView) -> APIRouter:
    """All paths of images."""
    routes = noun("images")
    _reading(routes, records, view)
    _writing(routes, service, view)
    filling(routes, service, view)
    leaving(routes, records, service)
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
        return answer(request, view, await once.perform(IMAGES, lambda: service.create(body, once)))

    @routes.patch(
        "/images/{image}",
        dependencies=[needs("images.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Image,
    )
    async def update_image(request: Request, image: ImageRef, body: wire.ImageUpdate, held: IfMatch) -> Response:
        """Change an image's name, description, labels, tags or protection."""
        return answer(request, view, await service.update(image, body, held))

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
