"""A file of an image on its way to the server: whole in one request, or in parts that outlive broken connections.

Small files go in one request, hashed as they go. Larger ones are hashed beside that, the server compares in the end;
whoever sends a file of that size for the same image once more goes on where an earlier attempt ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from novacron.client import images
from novacron.client.call import Request, Response
from novacron.client.flow import Count, Flow, Means, Rest, SendPart, perform
from novacron.client.images import Image, UploadCreate, UploadState
from novacron.client.problem import problem_of
from novacron.errors import Busy, DeadlineExceeded, ImageRefused, InvalidInput, NovaCronError, Reason, Unavailable
from novacron.model.image import FileRole

PIECE_BYTES = 1 << 20
COUNT_BYTES = 256 << 10  # stays in a core's own cache while it is counted
PART_BYTES = 64 << 20
SMALL_BYTES = 32 << 20
LEAST_TRIES = 12
FILLED_WITHIN_S = 4 * 3600.0

OnProgress = Callable[[int, int], None]
"""Told how many bytes have been handed over, and of how many."""


class Upload:
    """One regular file, opened; a context manager that closes it."""

    def __init__(self, path: Path, role: FileRole, on_progress: OnProgress) -> None:
        """:raise InvalidInput: it cannot be read or is no regular file."""
        self._path = path
        self._role = role
        self._on_progress = on_progress
        self._hash = hashlib.sha256()
        self._sent = 0
        self._counted = 0
        self._counter: threading.Thread | None = None
        self._given_up = threading.Event()
        try:
            # O_NONBLOCK: opening a pipe must not wait for somebody to write to it.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as wrong:
            raise InvalidInput.field(role.value, f"cannot read {path}: {wrong.strerror}") from wrong
        status = os.fstat(handle)
        self.size_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise InvalidInput.field(role.value, f"{path} is not a regular file")
        self._file = os.fdopen(handle, "rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        self._given_up.set()
        if self._counter is not None:
            self._counter.join()
        self._file.close()

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/octet-stream", "Content-Length": str(self.size_bytes)}

    @property
    def is_small(self) -> bool:
        """Whether it goes in one request: sending it again costs little."""
        return self.size_bytes <= SMALL_BYTES

    def read(self) -> bytes:
        """The next piece, empty at the end; may block."""
        return self._file.read(PIECE_BYTES)

    def count(self, piece: bytes) -> bytes:
        """The piece, noted as handed over.

        :raise InvalidInput: the file changes its size while it is read.
        """
        self._sent += len(piece)
        if self._sent > self.size_bytes or (not piece and self._sent != self.size_bytes):
            raise self._changed()
        self._hash.update(piece)
        if piece:
            self._on_progress(self._sent, self.size_bytes)
        return piece

    def pieces(self) -> Iterator[bytes]:
        """Every piece, each counted."""
        while piece := self.count(self.read()):
            yield piece

    def begin_counting(self) -> None:
        """Count the sha256 in a thread, beside the sending; `digest` has it."""
        self._counter = threading.Thread(target=self._count_all, name="sha256", daemon=True)
        self._counter.start()

    def digest(self) -> str:
        """The sha256 of the whole file, in hex; blocks. :raise InvalidInput: it changed its size meanwhile."""
        if self._counter is not None:
            self._counter.join()
        if self._counted != self.size_bytes:
            raise self._changed()
        return self._hash.hexdigest()

    def _count_all(self) -> None:
        buffer = memoryview(bytearray(COUNT_BYTES))
        with contextlib.suppress(OSError):  # then it is not counted whole
            while not self._given_up.is_set() and (got := os.preadv(self._file.fileno(), [buffer], self._counted)):
                self._hash.update(buffer[:got])
                self._counted += got

    def send(self, offset: int, length: int, to: socket.socket) -> None:
        """Send the bytes there, told piece by piece. :raise InvalidInput: the file ends before. :raise OSError"""
        end = offset + length
        while offset < end:
            sent = self._send_piece(offset, min(PIECE_BYTES, end - offset), to)
            if not sent:
                raise self._changed()
            offset += sent
            self._on_progress(offset, self.size_bytes)

    def _send_piece(self, offset: int, length: int, to: socket.socket) -> int:
        if not isinstance(to, ssl.SSLSocket):
            return to.sendfile(self._file, offset, length)
        piece = os.pread(self._file.fileno(), length, offset)
        to.sendall(piece)
        return len(piece)

    def _changed(self) -> InvalidInput:
        return InvalidInput.field(
            self._role.value, f"{self._path} changed while it was read", "upload it when nobody writes it"
        )

    def checked(self, image: Image) -> Image:
        """`image` as the server answered, if it holds exactly what was sent.

        :raise ImageRefused: it does not; the image is not to be sealed.
        """
        mine = self._hash.hexdigest()
        stored = next((file for file in image.files if file.role == self._role.value), None)
        if stored is None or mine not in (stored.digest, stored.source_digest):
            raise ImageRefused(
                f"{self._path} did not arrive whole",
                [
                    Reason(
                        "image.digest",
                        f"sent sha256 {mine}, stored {stored.digest if stored else 'nothing'}",
                        subject=self._role.value,
                        remedy="send it again",
                    )
                ],
            )
        return image


def in_parts(upload: Upload, image: str, role: FileRole, means: Means) -> Flow[Image]:
    """Send the file part by part; the image as the server answers in the end. A broken connection is dialled again.

    :raise ImageRefused: the server will not have the file. :raise Unavailable: it cannot be reached any more; what it
    has got is kept there, and the same call goes on from it.
    """
    if means.tries > 1:  # a server that restarts takes longer than a lost packet
        means = msgspec.structs.replace(means, tries=max(means.tries, LEAST_TRIES))
    upload.begin_counting()
    wish = UploadCreate(size_bytes=upload.size_bytes)
    state = yield from perform(images.start_upload(image, role, wish), means)
    failures = 0
    while state.offset_bytes < state.size_bytes:
        before = state.offset_bytes
        length = min(PART_BYTES, state.size_bytes - before)
        trouble: NovaCronError
        try:
            response: Response = yield SendPart(_request(state), upload, before, length)
        except (Unavailable, DeadlineExceeded) as wrong:
            trouble = wrong
        else:
            if response.status == 204:
                state = msgspec.structs.replace(state, offset_bytes=before + length)
                failures = 0
                continue
            trouble = problem_of(response.status, response.body)
            if not _is_passing(trouble):
                raise trouble
        failures += 1
        if failures >= (LEAST_TRIES if _has_moved(trouble) else means.tries):
            raise trouble
        rest_s = means.rest_s(failures)
        means.notice(f"{trouble.message}; going on in {rest_s:.1f} s")
        yield Rest(rest_s)
        state = yield from perform(images.get_upload(state.image_id, state.id), means)
        failures = 0 if state.offset_bytes > before else failures
    sha256: str = yield Count(upload)
    finish = images.UploadFinish(sha256=sha256)
    return (yield from perform(images.finish_upload(state.image_id, state.id, finish), means))


def _request(state: UploadState) -> Request:
    call = images.get_upload(state.image_id, state.id)
    headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(state.offset_bytes)}
    return Request(method="PATCH", target=call.path, headers=headers)


def _is_passing(trouble: NovaCronError) -> bool:
    """Whether asking for the offset and going on may help."""
    return _has_moved(trouble) or isinstance(trouble, Busy | Unavailable | DeadlineExceeded)


def _has_moved(trouble: NovaCronError) -> bool:
    """Whether the server has got more than it said: the rest of what an earlier connection had sent."""
    return any(reason.code == "upload.offset" for reason in trouble.reasons)
