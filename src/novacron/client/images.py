"""Images: what is sent, what is answered, and every call about them but those that carry a file's bytes."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.vms import Problem
from novacron.model.image import FileRole, is_tag


class ImageCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image to be filled. cmdline: the kernel's, for images with a kernel file."""

    name: str
    description: str = ""
    labels: Mapping[str, str] = {}
    cmdline: str = ""


class ImageUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels, tags: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    tags: Sequence[str] | UnsetType = UNSET
    protected: bool | UnsetType = UNSET


class UploadCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that will be sent in pieces. sha256: of the whole file, in hex; empty: told at the end."""

    size_bytes: int
    sha256: str = ""


class UploadFinish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """sha256: of the whole file, in hex, for the server to compare."""

    sha256: str = ""


class UploadState(msgspec.Struct, frozen=True, kw_only=True):
    """A file on its way. offset_bytes: how much the server has."""

    id: str
    image_id: str
    role: str
    size_bytes: int
    offset_bytes: int
    sha256: str
    created_at: datetime.datetime


class ImageImport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file the server is to fetch over https. sha256: what it must have; None: anything."""

    url: str
    sha256: str | None = None


class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """digest: sha256, as the server counted it; source_digest: of what was sent, when it was converted."""

    role: str
    digest: str
    size_bytes: int
    format: str | None = None
    virtual_size_bytes: int = 0
    source_format: str | None = None
    source_digest: str = ""


class FileTask(msgspec.Struct, frozen=True, kw_only=True):
    """Work on a file that is not there yet: phase fetching, converting or failed (then with a problem)."""

    role: str
    phase: str
    requested_at: datetime.datetime
    url: str = ""
    done_bytes: int = 0
    size_bytes: int = 0
    problem: Problem | None = None


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """What an appliance says it wants; 0: it does not say."""

    vcpus: int = 0
    memory_mib: int = 0


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
    tags: list[str] = []
    protected: bool = False
    tasks: list[FileTask] = []
    hints: Hints = Hints()


def create(image: ImageCreate) -> Call[Image]:
    """An image without files yet; send them with `Client.upload`, then `seal` it."""
    return Call(method="POST", path=path_of("images"), answer=Image, body=image)


def get(ref: str) -> Call[Image]:
    return Call(method="GET", path=path_of("images", image_ref(ref)), answer=Image)


def search(
    *, labels: Sequence[str] = (), state: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Image]]:
    """One page of the images that meet all `labels` and that `state`; empty: any."""
    query: Query = {"label": labels, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("images"), answer=Page[Image], query=query)


def update(ref: str, change: ImageUpdate, *, revision: int | None = None) -> Call[Image]:
    """Change an image's words; with `revision`, only when it is still that one."""
    path = path_of("images", image_ref(ref))
    return Call(method="PATCH", path=path, answer=Image, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    return Call(method="DELETE", path=path_of("images", image_ref(ref)), answer=type(None), revision=revision)


def put_file(ref: str, role: FileRole) -> Call[Image]:
    """Where a file's bytes are sent; `Client.upload` does it."""
    return Call(method="PUT", path=path_of("images", image_ref(ref), f"files/{role.value}"), answer=Image)


def start_upload(ref: str, role: FileRole, upload: UploadCreate) -> Call[UploadState]:
    """Begin to send a file in pieces, or go on with the unfinished upload of the same file."""
    path = path_of("images", image_ref(ref), f"files/{role.value}/upload")
    return Call(method="POST", path=path, answer=UploadState, body=upload)


def get_upload(ref: str, upload_id: str) -> Call[UploadState]:
    """How far an upload has come."""
    path = path_of("images", image_ref(ref), f"uploads/{ref_of('upload', upload_id)}")
    return Call(method="GET", path=path, answer=UploadState)


def finish_upload(ref: str, upload_id: str, finish: UploadFinish) -> Call[Image]:
    """All has been sent: it becomes the image's file, at once or (its `tasks` say) when it is converted."""
    path = path_of("images", image_ref(ref), f"uploads/{ref_of('upload', upload_id)}/finish")
    return Call(method="POST", path=path, answer=Image, body=finish)


def drop_upload(ref: str, upload_id: str) -> Call[None]:
    """Give an upload up."""
    path = path_of("images", image_ref(ref), f"uploads/{ref_of('upload', upload_id)}")
    return Call(method="DELETE", path=path, answer=type(None))


def import_file(ref: str, role: FileRole, wish: ImageImport) -> Call[Image]:
    """Have the server fetch a file; the image's `tasks` say how far it is."""
    path = path_of("images", image_ref(ref), f"files/{role.value}/import")
    return Call(method="POST", path=path, answer=Image, body=wish)


def remove_file(ref: str, role: FileRole) -> Call[Image]:
    """Take a pending image's file away, and end the work on it."""
    return Call(method="DELETE", path=path_of("images", image_ref(ref), f"files/{role.value}"), answer=Image)


def image_ref(text: str) -> str:
    """`text` if it may be an id, a name or a tag. :raise InvalidInput"""
    return text if is_tag(text) else ref_of("image", text)


def seal(ref: str) -> Call[Image]:
    """All files are there: inspect them, and let VMs be made from it."""
    return Call(method="POST", path=path_of("images", image_ref(ref), "seal"), answer=Image)
