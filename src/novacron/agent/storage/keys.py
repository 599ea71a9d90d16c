"""Secrets of storage: read from files of the node, handed to those who need them, never in a command or a record."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, IscsiAt, RbdAt, Source
from novacron.agent.drivers.qemu.protocol import key_file, key_of, protocol
from novacron.agent.storage.qemu_img import Opened
from novacron.agent.storage.tool import at
from novacron.errors import Unavailable

MAX_BYTES = 4096
_KEYRING = re.compile(rb"^\s*key\s*=\s*([A-Za-z0-9+/=]+)\s*$", re.MULTILINE)


def read(file: Path) -> bytes:
    """The secret in a file: all of it, or in a Ceph keyring its first key. :raise Unavailable"""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES).strip()
    except OSError as wrong:
        raise Unavailable(f"the secret file {file} cannot be read on this node: {wrong.strerror}") from wrong
    if content.startswith(b"["):
        found = _KEYRING.search(content)
        content = found[1] if found else b""
    if not content:
        raise Unavailable(f"the secret file {file} holds no secret")
    return content


@contextlib.contextmanager
def lent(file: Path, uid: int | None) -> Iterator[int]:
    """The secret as a descriptor that a tool of `uid` can read; it is on no disk."""
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, read(file))
        os.fchmod(descriptor, 0o400)
        if uid is not None:
            os.fchown(descriptor, uid, uid)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(source: Source, uid: int | None, form: str = "raw", *, snapshot: str = "") -> Iterator[Opened]:
    """A source as tools of `uid` open it. snapshot: of the server's own, where it has such."""
    with contextlib.ExitStack() as stack:
        descriptors: tuple[int, ...] = ()
        if (file := key_file(source)) is not None:
            descriptors = (stack.enter_context(lent(file, uid)),)
            source = _with_key(source, Path(at(descriptors[0])))
        seen = {"snapshot": snapshot} if snapshot else {}
        below = {"backing": None} if form == "qcow2" else {}
        node: dict[str, object] = {"driver": form, "file": {**protocol(source), **seen}, **below}
        objects = tuple(key for key in (key_of(source),) if key is not None)
        yield Opened(node=node, descriptors=descriptors, uid=uid, objects=objects)


def place(disk: DiskFile, run_dir: Path, uid: int | None) -> DiskFile:
    """The disk with a copy of its secret that its machine alone can read, in the machine's own directory."""
    file = key_file(disk.source)
    if file is None:
        return disk
    mine = run_dir / f"{disk.volume_id}.key"
    mine.unlink(missing_ok=True)
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        os.write(descriptor, read(file))
        if uid is not None:
            os.fchown(descriptor, uid, uid)
    finally:
        os.close(descriptor)
    return msgspec.structs.replace(disk, source=_with_key(disk.source, mine))


def _with_key(source: Source, file: Path) -> Source:
    match source:
        case RbdAt():
            return msgspec.structs.replace(source, key_file=file)
        case IscsiAt():
            return msgspec.structs.replace(source, password_file=file)
        case _:
            return source
