"""What goes into a sink is in the file, at its place, counted: whatever its pieces and wherever it begins."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.control.images import sink as module
from novacron.control.images.sink import Sink

pytestmark = pytest.mark.anyio

PLACES = [0, 1, 511, 4096, 4097, (4 << 20) - 3, 4 << 20, (8 << 20) + 5]


@pytest.fixture(params=["/var/tmp", "/dev/shm"])  # a disk, and memory, which knows no direct writes on older kernels
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nc-", dir=request.param) as made:
        yield Path(made)


@pytest.mark.parametrize("place", PLACES)
async def test_every_byte_is_at_its_place_and_counted(folder: Path, place: int) -> None:
    rng = random.Random(place)
    data = rng.randbytes((9 << 20) + rng.randrange(4096))
    file = folder / "file"
    file.write_bytes(bytes(place))
    hasher = hashlib.sha256()
    with file.open("r+b", buffering=0) as opened:
        sink = Sink(opened.fileno(), place, hasher)
        at = 0
        while at < len(data):
            size = rng.choice([1, 1000, 65536, 1 << 20, 5 << 20])
            await sink.take(data[at : at + size])
            at += size
        await sink.end()
    assert file.read_bytes() == bytes(place) + data
    assert hasher.hexdigest() == hashlib.sha256(data).hexdigest()
    assert sink.place == place + len(data)


async def test_who_is_cancelled_leaves_all_that_it_took(folder: Path) -> None:
    file = folder / "file"
    file.touch()
    with file.open("r+b", buffering=0) as opened:
        sink = Sink(opened.fileno())

        async def feed() -> None:
            try:
                while True:
                    await sink.take(b"x" * (1 << 20))
                    await asyncio.sleep(0)
            finally:
                await sink.end()

        feeding = asyncio.create_task(feed())
        while file.stat().st_size < 8 << 20:
            await asyncio.sleep(0.001)
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    assert file.stat().st_size == sink.place


async def test_a_full_disk_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = folder / "file"
    file.touch()
    monkeypatch.setattr(module.os, "pwrite", full)
    with file.open("r+b", buffering=0) as opened:
        sink = Sink(opened.fileno())
        await sink.take(b"x" * (4 << 20))
        with pytest.raises(OSError, match="No space"):
            await sink.end()
