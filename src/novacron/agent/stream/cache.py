"""The pages a node holds: those that came by earlier streams, in a file, and the blocks of its image files.

One cache serves all streams to a node. Who may share pages with whom is the scope: keys of one scope mean nothing in
another. Contents are hashed again whenever they are used, so nothing that happens to the file, to an image or to the
table makes a wrong page; it makes a page that has to be sent.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from novacron.agent.stream.batch import PAGE_BYTES, Page
from novacron.agent.stream.table import KeyTable, hasher, key_of
from novacron.errors import InvalidInput

MIN_LIMIT_BYTES = 1 << 20
MAX_IMAGE_BLOCKS = 1 << 20
"""Of all images in a scope: 4 GiB, 20 MiB of memory."""
_READ_PAGES = 256
_NOTHING = bytes(PAGE_BYTES)


class PageCache:
    """Up to `limit_bytes` of pages in a file without a name in `directory`: it is gone when the agent is.

    Thread-safe. Its memory: 12 bytes a page.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """:raise InvalidInput: too small, or the directory cannot be written."""
        if limit_bytes < MIN_LIMIT_BYTES:
            raise InvalidInput.field("page_cache_bytes", f"{limit_bytes} is too small", f"give {MIN_LIMIT_BYTES}")
        try:
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - as long as the cache
        except OSError as wrong:
            raise InvalidInput.field("page_cache", f"cannot write in {directory}: {wrong.strerror}") from wrong
        self._table = KeyTable(limit_bytes // PAGE_BYTES)
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._scopes: dict[str, Scope] = {}
        self._full = False

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def scope(self, name: str) -> Scope:
        """Those who share pages under this name."""
        if name not in self._scopes:
            secret = hashlib.blake2b(name.encode(), key=self._secret, digest_size=32).digest()
            self._scopes[name] = Scope(self, secret)
        return self._scopes[name]

    def read(self, key: bytes) -> bytes | None:
        """What lies under this key, unverified."""
        slot = self._table.find(key)
        return None if slot is None else os.pread(self.fileno(), PAGE_BYTES, slot * PAGE_BYTES)

    def keep(self, pages: Sequence[tuple[bytes, Page]]) -> None:
        """Remember (key, page) of each. A full disk ends the remembering, and nothing else."""
        if self._full:
            return
        try:
            for key, page in pages:
                with self._lock:
                    if self._table.find(key) is None:
                        slot = self._table.room(key)
                        os.pwrite(self.fileno(), page, slot * PAGE_BYTES)
                        self._table.put(slot, key)
        except OSError as wrong:
            self._full = True
            structlog.get_logger("page-cache").warning("no more pages are kept", reason=wrong.strerror)

    def close(self) -> None:
        """Let go of the file, and of every image."""
        for scope in self._scopes.values():
            scope.close()
        self._file.close()


class Scope:
    """One scope's view of the cache."""

    def __init__(self, cache: PageCache, secret: bytes) -> None:
        self._cache = cache
        self._fresh = hasher(secret)
        self.secret = secret
        self._blocks = KeyTable(1)  # grows with the first image: most scopes have none
        self._places = array.array("Q", bytes(8 * self._blocks.slots))
        self._images: dict[int, int] = {}  # number → descriptor
        self._names: dict[Path, int] = {}

    def take(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The page of each key, each proved by being hashed again; None: not here, or not what it should be."""
        return [self._proved(key, self._cache.read(key)) or self._proved(key, self._block(key)) for key in keys]

    def keep(self, pages: Sequence[tuple[bytes, Page]]) -> None:
        """Remember pages under the keys the sender gave them; a wrong key is found out when it is used."""
        self._cache.keep(pages)

    def learn(self, image: Path) -> int:
        """Index an image file's blocks where they lie; how many it has. Blocking: for a thread of its own.

        Raw images, and qcow2 whose clusters are not compressed: their blocks begin at whole pages of the file.
        :raise OSError: it cannot be read.
        """
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if self._blocks.slots < MAX_IMAGE_BLOCKS:
            larger = KeyTable(MAX_IMAGE_BLOCKS)
            self._places = array.array("Q", bytes(8 * larger.slots))
            self._blocks = larger
        self.unlearn(image)
        number = max(self._images, default=0) + 1
        self._images[number], self._names[image] = descriptor, number
        block = 0
        while piece := os.pread(descriptor, _READ_PAGES * PAGE_BYTES, block * PAGE_BYTES):
            for at in range(0, len(piece) - PAGE_BYTES + 1, PAGE_BYTES):
                page = piece[at : at + PAGE_BYTES]
                if page != _NOTHING:
                    self._place(key_of(self._fresh, page), number << 40 | block + at // PAGE_BYTES)
            block += _READ_PAGES
        return block

    def unlearn(self, image: Path) -> None:
        """Let go of an image file, so that its space is free once it is deleted."""
        number = self._names.pop(image, None)
        if number is not None:
            os.close(self._images.pop(number))

    def close(self) -> None:
        for image in list(self._names):
            self.unlearn(image)

    def _place(self, key: bytes, place: int) -> None:
        if self._blocks.find(key) is None:
            slot = self._blocks.room(key)
            self._places[slot] = place
            self._blocks.put(slot, key)

    def _block(self, key: bytes) -> bytes | None:
        slot = self._blocks.find(key)
        if slot is None:
            return None
        number, block = self._places[slot] >> 40, self._places[slot] & ((1 << 40) - 1)
        with contextlib.suppress(OSError):
            if (descriptor := self._images.get(number)) is not None:
                return os.pread(descriptor, PAGE_BYTES, block * PAGE_BYTES)
        return None

    def _proved(self, key: bytes, page: bytes | None) -> bytes | None:
        return page if page is not None and len(page) == PAGE_BYTES and key_of(self._fresh, page) == key else None
