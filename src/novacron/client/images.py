"""Images: what is sent, what is answered, and every call about them but the upload of their files."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.model.image import FileRole


class ImageCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image to be filled. cmdline: the kernel's, for images with a kernel file."""

    name: str
    description: str = ""
    labels: Mapping[str, str] = {}
    cmdline: str = ""


class ImageUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET


class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """digest: sha256, as the server counted it."""

    role: str
    digest: str
    size_bytes: int
    format: str | None = None
    virtual_size_bytes: int = 0


class Image(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    labels: dict[str, str]
    state: str
    cmdline: str
    files: list[ImageFile]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(image: ImageCreate) -> Call[Image]:
    """An image without files yet; send them with `Client.upload`, then `seal` it."""
    return Call(method="POST", path=path_of("images"), answer=Image, body=image)


def get(ref: str) -> Call[Image]:
    return Call(method="GET", path=path_of("images", ref_of("image", ref)), answer=Image)


def search(
    *, labels: Sequence[str] = (), state: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Image]]:
    """One page of the images that meet all `labels` and that `state`; empty: any."""
    query: Query = {"label": labels, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("images"), answer=Page[Image], query=query)


def update(ref: str, change: ImageUpdate, *, revision: int | None = None) -> Call[Image]:
    """Change an image's words; with `revision`, only when it is still that one."""
    path = path_of("images", ref_of("image", ref))
    return Call(method="PATCH", path=path, answer=Image, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    return Call(method="DELETE", path=path_of("images", ref_of("image", ref)), answer=type(None), revision=revision)


def put_file(ref: str, role: FileRole) -> Call[Image]:
    """Where a file's bytes are sent; `Client.upload` does it."""
    return Call(method="PUT", path=path_of("images", ref_of("image", ref), f"files/{role.value}"), answer=Image)


def seal(ref: str) -> Call[Image]:
    """All files are there: inspect them, and let VMs be made from it."""
    return Call(method="POST", path=path_of("images", ref_of("image", ref), "seal"), answer=Image)
