"""A file of an image on its way from the server: streamed, gone on with where a broken line left it, compared whole.

`fetch` is the conversation, `Landing` a file that has its name only once it is whole. No more than a piece of it is
in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from novacron.client import images
from novacron.client.call import Request, Response
from novacron.client.flow import Flow, Means, Receive, Rest, perform
from novacron.client.images import ImageFile
from novacron.client.problem import not_ours, problem_of
from novacron.client.upload import LEAST_TRIES, OnProgress
from novacron.errors import Conflict, DeadlineExceeded, ImageRefused, InvalidInput, NotFound, Reason, Unavailable
from novacron.model.image import FileRole

Write = Callable[[bytes], object]
"""Takes the next bytes, all of them; may block. In an asyncio program it is called in a thread."""

_RANGE = re.compile(r"bytes (\d{1,18})-", re.ASCII)
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def fetch(ref: str, role: FileRole, write: Write, on_progress: OnProgress, means: Means) -> Flow[ImageFile]:
    """Write the file's bytes, in order, each once; the file as the image's record has it.

    A broken connection is dialled again, and what is missing asked for.

    :raise NotFound: there is no such image or file. :raise Unavailable: the server cannot be reached any more.
    :raise ImageRefused: what was written is not that file, by its sha256. :raise Conflict: it was replaced meanwhile.
    """
    if means.tries > 1:  # a server that restarts takes longer than a lost packet
        means = msgspec.structs.replace(means, tries=max(means.tries, LEAST_TRIES))
    image = yield from perform(images.get(ref), means)
    file = next((one for one in image.files if one.role == role.value), None)
    if file is None:
        raise NotFound(f"image {image.name} has no {role.value} file")
    path = images.put_file(image.id, role).path
    download = Download(file, image.name, write, on_progress)
    failures = 0
    while download.missing_bytes:
        before = download.received_bytes
        try:
            response: Response = yield Receive(_request(path, before), download)
            trouble = _trouble(response)
        except (Unavailable, DeadlineExceeded) as wrong:
            trouble = wrong
        if not download.missing_bytes:
            break
        failures = 1 if download.received_bytes > before else failures + 1
        if failures >= means.tries:
            raise trouble
        rest_s = means.rest_s(failures)
        means.notice(f"{trouble.message}; going on in {rest_s:.1f} s")
        yield Rest(rest_s)
    return download.checked()


def _request(path: str, offset: int) -> Request:
    return Request(method="GET", target=path, headers={"Range": f"bytes={offset}-"} if offset else {})


def _trouble(response: Response) -> Unavailable | DeadlineExceeded:
    """Why an answer did not bring the rest. :raise NovaCronError: a refusal, which asking again does not change."""
    if response.status in (200, 206):
        return Unavailable("the answer ended before the file did")
    trouble = problem_of(response.status, response.body)
    if not isinstance(trouble, Unavailable | DeadlineExceeded):
        raise trouble
    return trouble


class Download:
    """What has come of one file: a flow.Sink that hands it on."""

    def __init__(self, file: ImageFile, image_name: str, write: Write, on_progress: OnProgress) -> None:
        self._file = file
        self._image_name = image_name
        self._write = write
        self._on_progress = on_progress
        self._hash = hashlib.sha256()
        self._known = 0  # how much of this answer had come before
        self.received_bytes = 0

    @property
    def missing_bytes(self) -> int:
        return self._file.size_bytes - self.received_bytes

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """:raise Conflict: it is another file by now. :raise Unavailable: it is not the part that was asked for."""
        if headers.get("etag", "").removeprefix("W/").strip('"') != self._file.digest:
            what = f"the {self._file.role} of image {self._image_name}"
            reason = Reason("image.replaced", "it is another file by now", self._image_name, "ask again")
            raise Conflict(f"{what} is not the file it was when this began", [reason])
        part = _RANGE.match(headers.get("content-range", ""))
        start = int(part[1]) if status == 206 and part else 0
        if start not in (0, self.received_bytes):
            raise not_ours(f"it sent a part from byte {start} on instead of {self.received_bytes}")
        self._known = self.received_bytes - start

    def take(self, piece: bytes) -> None:
        """:raise ImageRefused: there is more of it than its record says."""
        known = min(self._known, len(piece))
        self._known -= known
        piece = piece[known:]
        if len(piece) > self.missing_bytes:
            raise self._refused(f"more than its {self._file.size_bytes} bytes came")
        if piece:
            self._write(piece)
            self._hash.update(piece)
            self.received_bytes += len(piece)
            self._on_progress(self.received_bytes, self._file.size_bytes)

    def checked(self) -> ImageFile:
        """The file. :raise ImageRefused: what came is not it."""
        if self._hash.hexdigest() != self._file.digest:
            raise self._refused(f"its sha256 is {self._hash.hexdigest()}, and should be {self._file.digest}")
        return self._file

    def _refused(self, why: str) -> ImageRefused:
        what = f"the {self._file.role} of image {self._image_name}"
        reason = Reason("image.digest", why, self._file.role, "do not use what was written; download it again")
        return ImageRefused(f"what came is not {what}: {why}", [reason])


class Landing:
    """A file that comes to be under its name when it is whole. A context manager: what is not kept is taken away.

    It is written beside its target, under a hidden name that nothing else has.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        """:raise Conflict: there is such a file, and it is not to be overwritten. :raise InvalidInput: it cannot be."""
        self._target = target
        self._overwrite = overwrite
        self._check_target()
        self._beside = target.parent / f".novacron-{secrets.token_hex(8)}.part"
        with self._failures():
            handle = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._file = os.fdopen(handle, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a full disk: what is in the buffer cannot be written, and need not be
            self._file.close()
        self._beside.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """:raise InvalidInput: it cannot be written: the disk is full."""
        with self._failures():
            self._file.write(piece)

    def keep(self) -> None:
        """It is whole: on the disk, then under its name. :raise Conflict: another has taken the name meanwhile."""
        with self._failures():
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._overwrite:
                self._link()
            else:
                self._check_target()
                self._beside.replace(self._target)

    def _link(self) -> None:
        """A link, unlike a rename, never takes the place of a file that came meanwhile."""
        try:
            os.link(self._beside, self._target)
        except FileExistsError as wrong:
            raise self._taken() from wrong
        except OSError as wrong:
            if wrong.errno not in _NO_LINKS:
                raise
            self._check_target()
            self._beside.replace(self._target)

    def _check_target(self) -> None:
        try:
            status = self._target.lstat()
        except FileNotFoundError:
            return
        except OSError as wrong:
            raise self._unwritable(wrong) from wrong
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput.field("output", f"{self._target} is not a regular file", "name a file")
        if not self._overwrite:
            raise self._taken()

    def _taken(self) -> Conflict:
        reason = Reason("file.exists", "it is there already", str(self._target), "name another, or give --force")
        return Conflict(f"{self._target} is there already", [reason])

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as wrong:
            raise self._unwritable(wrong) from wrong

    def _unwritable(self, wrong: OSError) -> InvalidInput:
        return InvalidInput.field("output", f"cannot write {self._target}: {wrong.strerror}", "name a place with room")
