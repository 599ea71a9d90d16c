"""Turns a disk of another format into qcow2 with qemu-img, held on a short leash.

The file was inspected before: it points nowhere. Still the tool gets bounds for memory, processor time, wall time and
what it writes, an explicit format, an environment of its own, names without a path, and, where this process is root,
a user that owns nothing else. It works in a directory that only that user may enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from novacron.child import heard
from novacron.errors import DeadlineExceeded, DriverError, ImageRefused, NoRoom, Reason, TooLarge

MAX_MEMORY_BYTES = 1 << 30
MAX_RATIO = 100
"""How much larger than its source the result may be: what is blown up more is a bomb, not a disk."""

FREE_BYTES = 64 << 20
"""Small sources may always become this large."""

CPU_S_PER_GIB = 120
LEAST_CPU_S = 60
MAX_WORDS = 2048
TOOL_UID = 0x4E430000
"""Slot 0 of the machines' users, which no machine has."""

SOURCE, RESULT = "data", "result.qcow2"
POLL_S = 0.5


class Extent(msgspec.Struct, frozen=True):
    """Where in the file the disk lies, and how large it is to its guest."""

    offset: int
    length: int
    virtual_size_bytes: int


class Limits(msgspec.Struct, frozen=True):
    """What the tool may use."""

    output_bytes: int
    cpu_s: int
    wall_s: float


def limits_for(extent: Extent) -> Limits:
    """Bounds that every honest disk of this size stays within."""
    tables = (extent.virtual_size_bytes >> 12) + (1 << 20)  # qcow2's own, generously
    most = max(FREE_BYTES, extent.length * MAX_RATIO)
    output = min(extent.virtual_size_bytes + tables, most)
    cpu_s = LEAST_CPU_S + CPU_S_PER_GIB * (output >> 30)
    return Limits(output_bytes=output, cpu_s=cpu_s, wall_s=float(cpu_s * 4))


async def to_qcow2(directory: Path, extent: Extent, on_progress: Callable[[int], None]) -> Path:
    """Convert the streamOptimized VMDK in `directory`/data; the path of the result beside it.

    on_progress: told how many bytes the result has. After a failure there is no result.

    :raise TooLarge: it would become larger than its bounds. :raise ImageRefused: the tool cannot read it.
    :raise NoRoom: the pool is full. :raise DeadlineExceeded, DriverError
    """
    result = directory / RESULT
    result.unlink(missing_ok=True)
    limits = limits_for(extent)
    try:
        await _run(directory, _command(extent, limits), limits, result, on_progress)
        _take_back(result)
    except BaseException:
        result.unlink(missing_ok=True)
        raise
    return result


def _command(extent: Extent, limits: Limits) -> list[str]:
    part = {
        "driver": "vmdk",
        "file": {
            "driver": "raw",
            "offset": extent.offset,
            "size": extent.length,
            "file": {"driver": "file", "filename": SOURCE, "locking": "off"},
        },
    }
    source = "json:" + msgspec.json.encode(part).decode()
    return [
        "prlimit", f"--as={MAX_MEMORY_BYTES}", f"--cpu={limits.cpu_s}", f"--fsize={limits.output_bytes}", "--core=0",
        "qemu-img", "convert", "-q", "-O", "qcow2", "-o", "compat=1.1", source, RESULT,
    ]  # fmt: skip


async def _run(
    directory: Path, command: list[str], limits: Limits, result: Path, on_progress: Callable[[int], None]
) -> None:
    process = await asyncio.create_subprocess_exec(
        *_as_nobody(directory),
        *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        cwd=directory, env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
    )  # fmt: skip
    watching = asyncio.create_task(_watch(result, on_progress))
    try:
        done = await heard(process, "qemu-img", within_s=limits.wall_s, answer_bytes=0, words_bytes=MAX_WORDS)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    if done.code != 0:
        raise _failure(done.code, done.words.decode(errors="replace").strip(), limits)


def _as_nobody(directory: Path) -> list[str]:
    """As root: what makes the tool run as its own user, who gets the directory."""
    if os.geteuid() != 0:
        return []
    for path in (directory, directory / SOURCE):
        os.chown(path, TOOL_UID, TOOL_UID, follow_symlinks=False)
    return ["setpriv", f"--reuid={TOOL_UID}", f"--regid={TOOL_UID}", "--clear-groups", "--no-new-privs"]


def _take_back(result: Path) -> None:
    """Own the result again, and only if it is a plain file."""
    handle = os.open(result, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0:
            os.fchown(handle, 0, 0)
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _failure(code: int, said: str, limits: Limits) -> Exception:
    if code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ) or os.strerror(errno.EFBIG) in said:
        reason = Reason(
            "image.ratio",
            f"unpacked it would be larger than {limits.output_bytes} bytes",
            subject="disk",
            remedy=f"send a disk that grows at most {MAX_RATIO} times, or convert it to qcow2 yourself",
        )
        return TooLarge("the disk grows too much when it is unpacked", [reason])
    if os.strerror(errno.ENOSPC) in said:
        return NoRoom("the storage pool is full: delete images or volumes, or make it larger")
    if code in (-signal.SIGXCPU, 128 + signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGKILL):
        return DeadlineExceeded(f"the disk was not converted within {limits.cpu_s} s of processor time")
    if code == 127:
        return DriverError("the server has no qemu-img to convert the disk with: install it (qemu-utils)")
    words = said.replace(SOURCE, "the disk") or f"qemu-img ended with {code}"
    return ImageRefused(
        "the disk file is refused: qemu-img cannot read it",
        [Reason("image.damaged", words[:300], subject="disk", remedy="export it again")],
    )


async def _watch(result: Path, on_progress: Callable[[int], None]) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        with contextlib.suppress(FileNotFoundError):
            on_progress((await asyncio.to_thread(result.stat)).st_size)
