"""Image files of a directory pool: named by the sha256 of their content, read-only, never changed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import uuid
from pathlib import Path

from novacron.agent.storage import copying, qcow2
from novacron.agent.storage.names import check_digest, is_digest
from novacron.agent.storage.outlet import sync_directory
from novacron.errors import DriverError, NotFound
from novacron.model.image import DiskFormat


class ImageShelf:
    """The `images` directory of a pool. Each verb raises OSError where the pool itself fails."""

    def __init__(self, pool_dir: Path) -> None:
        self._pool_dir = pool_dir
        self._dir = pool_dir / "images"

    def path(self, digest: str) -> Path:
        """:raise NotFound: the pool does not hold it. :raise InvalidInput: not a sha256 digest."""
        path = self._dir / check_digest(digest)
        if not is_file(path):
            raise NotFound(f"the storage pool {self._pool_dir} holds no image {digest}")
        return path

    def held(self) -> tuple[str, ...]:
        """Digests of the image files there are."""
        with contextlib.suppress(FileNotFoundError):
            return tuple(sorted(path.name for path in self._dir.iterdir() if is_digest(path.name) and is_file(path)))
        return ()

    async def keep(self, digest: str, file: Path) -> None:
        """Link the file in, or copy it when it lies on another file system; whole before it gets its name."""
        path = self._dir / check_digest(digest)
        if await asyncio.to_thread(is_file, path):
            return
        making = self._dir / f".making-{digest}.{uuid.uuid4()}"
        await asyncio.to_thread(_make_dir, self._dir)
        try:
            if not await asyncio.to_thread(_link, file, making):
                await _copy(file, making)
            await asyncio.to_thread(_finish, making, path)
        finally:
            making.unlink(missing_ok=True)

    def drop(self, digest: str) -> None:
        """Delete it. Absent: fine."""
        (self._dir / check_digest(digest)).unlink(missing_ok=True)
        sync_directory(self._dir)


def format_of(path: Path) -> tuple[DiskFormat, int]:
    """Format and virtual size of an image the control plane has inspected: qcow2 by its magic, everything else raw."""
    with path.open("rb") as file:
        header = qcow2.parse(file.read(qcow2.HEADER_BYTES))
        if header is None:
            return DiskFormat.RAW, os.fstat(file.fileno()).st_size
    if header.backing or header.data_file:
        raise DriverError(f"image {path.name} points outside itself: it was not inspected, or changed since")
    return DiskFormat.QCOW2, header.size_bytes


def is_file(path: Path) -> bool:
    """Whether a regular file is there, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _make_dir(path: Path) -> None:
    if not path.exists():
        path.mkdir(exist_ok=True)
        path.chmod(0o711)  # whatever the umask: machines' users open what they know the digest of


def _link(file: Path, making: Path) -> bool:
    try:
        os.link(file, making, follow_symlinks=False)
    except OSError as wrong:
        if wrong.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            return False
        raise
    return True


async def _copy(file: Path, making: Path) -> None:
    source = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        target = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            await copying.copy(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _finish(making: Path, path: Path) -> None:
    descriptor = os.open(making, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(making, path)
    sync_directory(path.parent)
