"""A storage pool in a directory that nodes share: images by digest, volumes by id, made whole or not at all.

    pool.id                  a UUID, so that two nodes can see that they share the pool
    images/<sha256>          inspected by the control plane, read-only, never changed
    volumes/<id>.qcow2       one disk of one machine: empty, or a copy-on-write child of an image
    volumes/.making/         volumes that are being made; what a crash leaves here is no volume

A finished volume is linked to its name, which fails when the name is there: a volume is never overwritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import struct
import uuid
from pathlib import Path

from novacron.agent.drivers.base import DiskFile, FileAt, Layer
from novacron.errors import DeadlineExceeded, DriverError, InvalidInput, NoRoom, NotFound, Reason, Unavailable
from novacron.model.identity import is_id
from novacron.model.image import DiskFormat
from novacron.model.machine import Disk

QEMU_IMG_AS_BYTES = 1 << 30
QEMU_IMG_CPU_S = 30
QEMU_IMG_DEADLINE_S = 60.0
MAX_WORDS = 2048  # of what qemu-img says

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_QCOW2_MAGIC = b"QFI\xfb"


class DirectoryPool:
    """The pool on this node. Its directory must exist: a pool that is not mounted is not made anew on the node's disk.

    qemu_img: name or path of the program that makes volumes.
    """

    def __init__(self, pool_dir: Path, qemu_img: str = "qemu-img") -> None:
        self._dir = pool_dir.absolute()
        self._qemu_img = qemu_img

    async def pool_id(self) -> str:
        """The pool's own id, made by whoever asks first. :raise Unavailable: the directory is not there."""
        return await asyncio.to_thread(self._pool_id)

    def image_path(self, digest: str) -> Path:
        """:raise NotFound: the pool does not hold it. :raise InvalidInput: not a sha256 digest."""
        if _DIGEST.match(digest) is None:
            raise InvalidInput.field("digest", "is not a sha256 digest", "give 64 hexadecimal digits")
        path = self._dir / "images" / digest
        if not _is_file(path):
            raise NotFound(f"the storage pool {self._dir} holds no image {digest}")
        return path

    async def ensure_volume(self, disk: Disk, *, uid: int | None, gid: int | None, in_use: bool = False) -> DiskFile:
        """The volume, made when missing; mode 0600 and owned by `uid` and `gid` when given. Idempotent.

        in_use: its machine has run before, so it holds data: one that is missing is not replaced by an empty one.

        :raise NotFound: the image it is a child of is not in the pool, or a volume in use is missing.
        :raise NoRoom: the pool is full. :raise Unavailable: it is not there. :raise DriverError: qemu-img failed.
        After a failure there is no volume, or a whole one.
        """
        path = self._volume_path(disk.volume_id)
        backing = await asyncio.to_thread(self._backing, disk.backing_digest)
        if not await asyncio.to_thread(_is_file, path):
            if in_use:
                raise NotFound(
                    f"volume {disk.volume_id} is missing from the storage pool {self._dir}",
                    [Reason("volume.missing", "its machine has run before", remedy="mount the pool that holds it")],
                )
            await self._make(disk, path, backing[0][1] if backing else None)
        if uid is not None or gid is not None:
            await asyncio.to_thread(_hand_over, path, uid, gid)
        return DiskFile(
            volume_id=disk.volume_id,
            source=FileAt(path),
            format=DiskFormat.QCOW2.value,
            backing=tuple(Layer(FileAt(image), format_.value) for image, (format_, _) in backing),
            qos=disk.qos,
            boot_order=disk.boot_order,
        )

    async def remove_volume(self, volume_id: str) -> None:
        """Delete a volume for good. Absent: fine."""
        path = self._volume_path(volume_id)
        await asyncio.to_thread(self._remove, path, volume_id)

    def usage(self) -> tuple[int, int]:
        """Bytes free to this process and bytes in all. :raise Unavailable"""
        try:
            seen = os.statvfs(self._dir)
        except OSError as wrong:
            raise self._gone(wrong) from wrong
        return seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize

    # -- parts -----------------------------------------------------------------------------------------------

    def _volume_path(self, volume_id: str) -> Path:
        if not is_id(volume_id):
            raise InvalidInput.field("volume_id", "is not an id", "give a UUID")
        return self._dir / "volumes" / f"{volume_id}.qcow2"

    def _backing(self, digest: str) -> list[tuple[Path, tuple[DiskFormat, int]]]:
        if not digest:
            return []
        path = self.image_path(digest)
        return [(path, format_of(path))]

    async def _make(self, disk: Disk, path: Path, backing: tuple[DiskFormat, int] | None) -> None:
        making = await asyncio.to_thread(self._making_dir) / f"{disk.volume_id}.{uuid.uuid4()}"
        size = max(disk.size_bytes, backing[1] if backing else 0)
        child_of: tuple[str, ...] = ()
        if backing:  # relative, so that every node finds it wherever the pool is mounted; -u: it is not opened now
            child_of = ("-u", "-b", f"../images/{disk.backing_digest}", "-F", backing[0].value)
        try:
            await self._run("create", "-q", "-f", "qcow2", "-o", "compat=1.1", *child_of, str(making), str(size))
            await asyncio.to_thread(_finish, making, path)
        except OSError as wrong:
            if wrong.errno == errno.ENOSPC:
                raise self._full() from wrong
            raise DriverError(f"volume {disk.volume_id} could not be made: {wrong}") from wrong
        finally:
            making.unlink(missing_ok=True)

    def _making_dir(self) -> Path:
        volumes = self._dir / "volumes"
        try:
            volumes.mkdir(exist_ok=True)
            volumes.chmod(0o711)  # whatever the umask: the machines' users pass through, and list nothing
            (volumes / ".making").mkdir(mode=0o700, exist_ok=True)
        except OSError as wrong:
            raise self._gone(wrong) from wrong
        return volumes / ".making"

    def _remove(self, path: Path, volume_id: str) -> None:
        path.unlink(missing_ok=True)
        for left in (path.parent / ".making").glob(f"{volume_id}.*"):
            left.unlink(missing_ok=True)

    async def _run(self, *words: str) -> None:
        """qemu-img with bounded memory, processor and wall time. :raise DriverError, NoRoom, DeadlineExceeded"""
        limits = (f"--as={QEMU_IMG_AS_BYTES}", f"--cpu={QEMU_IMG_CPU_S}", "--core=0")
        environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
        process = await asyncio.create_subprocess_exec(
            "prlimit", *limits, self._qemu_img, *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        try:
            async with asyncio.timeout(QEMU_IMG_DEADLINE_S):
                said = await _read_bounded(process)
                code = await process.wait()
        except TimeoutError as late:
            raise DeadlineExceeded(f"qemu-img did not end within {QEMU_IMG_DEADLINE_S:.0f} s") from late
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code == 0:
            return
        if os.strerror(errno.ENOSPC) in said:
            raise self._full()
        raise DriverError(f"qemu-img ended with {code}: {said or 'it said nothing'}")

    def _pool_id(self) -> str:
        file = self._dir / "pool.id"
        mine = self._dir / f".pool.id.{uuid.uuid4()}"
        try:
            if not file.exists():
                try:
                    mine.write_text(f"{uuid.uuid4()}\n")
                    with contextlib.suppress(FileExistsError):  # another was first: its id counts
                        os.link(mine, file)
                finally:
                    mine.unlink(missing_ok=True)
            found = file.read_text().strip()
        except OSError as wrong:
            raise self._gone(wrong) from wrong
        if not is_id(found):
            raise Unavailable(f"{file} does not hold a pool's id: the pool is damaged, or this is no pool")
        return found

    def _gone(self, wrong: OSError) -> Unavailable:
        return Unavailable(f"the storage pool {self._dir} cannot be used: {wrong.strerror}: is it mounted?")

    def _full(self) -> NoRoom:
        return NoRoom(f"the storage pool {self._dir} is full: make room or take another")


def format_of(path: Path) -> tuple[DiskFormat, int]:
    """Format and virtual size of an image the control plane has inspected: qcow2 by its magic, everything else raw."""
    with path.open("rb") as file:
        head = file.read(32)
    if head[:4] == _QCOW2_MAGIC and len(head) == 32:
        return DiskFormat.QCOW2, int(struct.unpack_from(">Q", head, 24)[0])
    return DiskFormat.RAW, path.stat().st_size


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _finish(making: Path, path: Path) -> None:
    """Give the whole volume its name, for good. One that is there already stays."""
    making.chmod(0o600)
    with making.open("rb") as file:
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(making, path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _hand_over(path: Path, uid: int | None, gid: int | None) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
    finally:
        os.close(fd)


async def _read_bounded(process: asyncio.subprocess.Process) -> str:
    """The beginning of what it says; the rest is read and thrown away, so that it never blocks."""
    if process.stderr is None:
        return ""
    kept = b""
    while piece := await process.stderr.read(4096):
        kept = (kept + piece)[:MAX_WORDS]
    return kept.decode("utf-8", "replace").strip()
