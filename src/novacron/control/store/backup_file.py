"""A backup's file: a line that says what it is, a line for each record, a line with their number and digest."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from novacron.control.store import sqlite_file
from novacron.control.store.base import MAX_KEY_BYTES, MAX_VALUE_BYTES, Entry
from novacron.errors import Conflict, InvalidInput, Reason

FORMAT = "novacron store backup 1"
MAX_LINE_BYTES = 2 * MAX_VALUE_BYTES + 8 * MAX_KEY_BYTES
UNFINISHED = ".unfinished"


class Head(msgspec.Struct, frozen=True):
    """revision: of the store at the moment of the backup; taken: when that was; origin: its address."""

    format: str
    revision: int
    taken: datetime.datetime
    origin: str


class Tally(msgspec.Struct):
    """How many records, and a digest of them in their order; equal for equal contents."""

    records: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()

    def add(self, key: str, value: bytes) -> None:
        """Each digest covers the one before it, so that order and number count too."""
        self.records += 1
        content = hashlib.sha256(self.sha256.encode())
        for part in (key.encode(), value):
            content.update(len(part).to_bytes(8, "big") + part)
        self.sha256 = content.hexdigest()


async def write(file: Path, head: Head, entries: AsyncIterator[Entry]) -> Tally:
    """A new file, for its owner alone; when it cannot be finished none is left.

    :raise Conflict: there is one by that name. :raise InvalidInput: it cannot be written.
    """
    refuse_existing(file)
    unfinished = file.with_name(file.name + UNFINISHED)
    tally = Tally()
    try:
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(msgspec.json.encode(head) + b"\n")
            async for entry in entries:
                tally.add(entry.key, entry.value)
                out.write(msgspec.json.encode((entry.key, base64.b64encode(entry.value).decode())) + b"\n")
            out.write(msgspec.json.encode(tally) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        unfinished.rename(file)
        sqlite_file.sync_directory(file.parent)
    except OSError as wrong:
        raise InvalidInput.field("file", f"cannot write {file}: {wrong.strerror}", "give another one") from wrong
    finally:
        unfinished.unlink(missing_ok=True)
    return tally


def refuse_existing(file: Path) -> None:
    """:raise Conflict"""
    if file.exists():
        reason = Reason("store.not_empty", "it is there already", subject=str(file), remedy="give another name")
        raise Conflict(f"there is a file {file} already", [reason])


def check(file: Path) -> tuple[Head, Tally]:
    """Read all of it. :raise InvalidInput: it is no backup, is cut off, or was changed."""
    tally = Tally()
    try:
        with file.open("rb") as lines:
            head = _head(lines, file)
            for key, value in _records(lines, file, tally):
                tally.add(key, value)
    except OSError as wrong:
        raise InvalidInput.field("file", f"cannot read {file}: {wrong.strerror}", "give a backup") from wrong
    return head, tally


def records(file: Path) -> Iterator[tuple[str, bytes]]:
    """Key and value of each record of a file that was checked."""
    tally = Tally()
    with file.open("rb") as lines:
        _head(lines, file)
        for key, value in _records(lines, file, tally):
            tally.add(key, value)
            yield key, value


def _head(lines: BinaryIO, file: Path) -> Head:
    try:
        head = msgspec.json.decode(lines.readline(MAX_LINE_BYTES), type=Head)
    except msgspec.DecodeError as wrong:
        raise InvalidInput.field("file", f"{file} is no backup of a store", "give a backup") from wrong
    if head.format != FORMAT:
        raise InvalidInput.field(
            "file", f"{file} is a {head.format!r}", "use the NovaCron that made it, or a newer one"
        )
    return head


def _records(lines: BinaryIO, file: Path, so_far: Tally) -> Iterator[tuple[str, bytes]]:
    """Until the last line, which must agree with what the caller has added up."""
    while line := lines.readline(MAX_LINE_BYTES):
        try:
            if line.startswith(b"{"):
                if msgspec.json.decode(line, type=Tally) == so_far and not lines.read(1):
                    return
                break
            key, value = msgspec.json.decode(line, type=tuple[str, str])
            yield key, base64.b64decode(value, validate=True)
        except ValueError:  # msgspec's and base64's
            break
    raise InvalidInput.field("file", f"{file} is damaged or cut off after {so_far.records} records", "give another one")
