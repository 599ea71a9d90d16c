"""A large file on its way to a real server: the connection breaks, the server is killed, and it arrives whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import images, upload
from novacron.client.asynchronous import AsyncClient
from novacron.errors import ImageRefused, Unavailable
from novacron.model.image import FileRole
from tests.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.system]

MIB = 1 << 20
SIZE = 24 * MIB
WITHIN_S = 30.0


class Server:
    """A server process that can be killed and started again on its port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        data, pool = str(self.directory / "data"), str(self.directory / "pool")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "novacron.control", "--data-dir", data, "--pool-dir", pool, "--port", str(self.port),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            while line := await self.process.stdout.readline():
                if line.startswith(b"ready "):
                    return
        raise AssertionError("the server did not start")

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    @property
    def token(self) -> str:
        return (self.directory / "data" / "admin.token").read_text().strip()

    def left(self) -> list[Path]:
        rooms = (self.directory / "pool" / "incoming", self.directory / "pool" / "uploads")
        return [path for room in rooms if room.exists() for path in room.iterdir()]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.kill()


class Proxy:
    """Stands between client and server; strikes when so many bytes of a connection have passed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.strikes: list[int] = []
        self.passed = 0
        self.struck = asyncio.Event()
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.create_task(_copy(far_reader, writer))
            with contextlib.suppress(OSError):
                seen = 0
                while piece := await reader.read(65536):
                    seen += len(piece)
                    self.passed += len(piece)
                    far_writer.write(piece)
                    await far_writer.drain()
                    if self.strikes and seen > self.strikes[0]:
                        self.strikes.pop(0)
                        self.struck.set()
                        break
            far_writer.transport.abort()
            await back
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.transport.abort()


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    made = Proxy(server.port)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"\xeb\x63" + random.Random(4).randbytes(SIZE - 2))
    return path


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this size go in parts."""
    monkeypatch.setattr(upload, "SMALL_BYTES", MIB)
    monkeypatch.setattr(upload, "PART_BYTES", 8 * MIB)


async def pending(client: AsyncClient) -> images.Image:
    return await client.do(images.create(images.ImageCreate(name="big")))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_broken_connections_cost_what_was_on_the_wire(server: Server, proxy: Proxy, disk: Path) -> None:
    notices: list[str] = []
    steps: list[tuple[int, int]] = []
    async with AsyncClient(proxy.address, server.token, on_notice=notices.append) as client:
        made = await pending(client)
        proxy.strikes = [3 * MIB, 5 * MIB, 7 * MIB]
        filled = await client.upload(made.id, FileRole.DISK, disk, lambda sent, of: steps.append((sent, of)))
        await client.do(images.seal(made.id))
    assert [(file.digest, file.size_bytes) for file in filled.files] == [(digest(disk), SIZE)]
    assert len(notices) == 3
    assert steps[-1] == (SIZE, SIZE)
    assert SIZE < proxy.passed < SIZE + 3 * 4 * MIB
    assert server.left() == []


async def test_a_killed_server_goes_on_where_it_died(server: Server, proxy: Proxy, disk: Path) -> None:
    proxy.strikes = [3 * MIB]

    async def strike() -> None:
        await proxy.struck.wait()
        await server.kill()
        await server.start()

    async with AsyncClient(proxy.address, server.token, on_notice=lambda _: None) as client:
        made = await pending(client)
        striking = asyncio.create_task(strike())
        filled = await client.upload(made.id, FileRole.DISK, disk)
        await striking
    assert [file.digest for file in filled.files] == [digest(disk)]
    assert proxy.passed < SIZE + 8 * MIB
    assert server.left() == []


async def test_a_client_that_gave_up_goes_on_another_day(server: Server, proxy: Proxy, disk: Path) -> None:
    async with AsyncClient(proxy.address, server.token, tries=1) as hasty:
        made = await pending(hasty)
        proxy.strikes = [4 * MIB]
        with pytest.raises(Unavailable):
            await hasty.upload(made.id, FileRole.DISK, disk)
        before = proxy.passed
        assert len(server.left()) == 1
        filled = await hasty.upload(made.id, FileRole.DISK, disk)
    assert [file.digest for file in filled.files] == [digest(disk)]
    assert proxy.passed - before < SIZE - 2 * MIB


async def test_a_refused_file_is_said_and_gone(server: Server, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(b"QFI\xfb\0\0\0\x03" + bytes(96))
    async with AsyncClient(f"http://127.0.0.1:{server.port}", server.token) as client:
        made = await pending(client)
        with pytest.raises(ImageRefused):
            await client.upload(made.id, FileRole.DISK, disk)
    assert server.left() == []


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_a_vmdk_is_waited_for_until_it_is_converted(server: Server, disk: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "disk.vmdk"
    options = ("-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized")
    subprocess.run(["qemu-img", "convert", *options, disk, vmdk], check=True)
    async with AsyncClient(f"http://127.0.0.1:{server.port}", server.token) as client:
        made = await pending(client)
        filled = await client.upload(made.id, FileRole.DISK, vmdk)
    (file,) = filled.files
    assert (file.format, file.source_format, file.source_digest) == ("qcow2", "vmdk", digest(vmdk))
    assert file.virtual_size_bytes == SIZE


async def test_memory_stays_bounded_however_large_the_file(server: Server, tmp_path: Path) -> None:
    """1 GiB through client and server; neither grows by more than 64 MiB."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(b"\xeb\x63")
        os.truncate(file.fileno(), 1 << 30)
    status = Path(f"/proc/{server.process.pid}/status")
    peak = lambda: next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))  # noqa: E731
    async with AsyncClient(f"http://127.0.0.1:{server.port}", server.token) as client:
        made = await pending(client)
        small = tmp_path / "small"
        small.write_bytes(b"\xeb\x63" + bytes(4 * MIB - 2))
        await client.upload(made.id, FileRole.DISK, small)
        before_kib, mine_kib = peak(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await client.upload(made.id, FileRole.DISK, path)
    assert peak() - before_kib < 64 << 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mine_kib < 64 << 10
