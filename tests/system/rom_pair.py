"""Two QEMUs with the ROM guest and nothing of ours around them: what is measured is the stream between."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from novacron.lab.rom import rom
from tests.bench.floor import Monitor
from tests.system.rom_machine import BINARY, CACHE, until

TICK = re.compile(rb"^T ([0-9a-f]{8}) ([0-9a-f]{8})$", re.MULTILINE)


class RomMachine:
    """One QEMU. Its guest rewrites pages and checks them; `incoming`: it waits for a stream.

    Its memory is 8 KiB more: without, QEMU 7.2 loses pages (decision 0005), here when its stream is held up.
    """

    def __init__(self, directory: Path, name: str, *, memory_mib: int, pages: int, wss: int, incoming: bool) -> None:
        self.console, self._monitor_path = directory / f"{name}.console", directory / f"{name}.qmp"
        image, memory = rom(CACHE, pages, wss), f"{(memory_mib << 10) + 8}k"
        # fmt: off
        command = [
            BINARY, "-machine", "pc", "-accel", "tcg,tb-size=2", "-m", memory, "-cpu", "qemu64", "-nodefaults",
            "-no-user-config", "-display", "none", "-bios", str(image), "-serial", f"file:{self.console}", "-qmp",
            f"unix:{self._monitor_path},server=on,wait=off", *(["-S", "-incoming", "defer"] if incoming else []),
        ]
        # fmt: on
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._monitor: Monitor | None = None

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while self._monitor is None:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # not made yet, or not heard yet
                    self._monitor = await asyncio.to_thread(Monitor, self._monitor_path)
                await asyncio.sleep(0.005)

    async def do(self, command: str, **arguments: Any) -> Any:
        """One QMP command; _ in its words stands for -."""
        assert self._monitor is not None
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await asyncio.to_thread(self._monitor.execute, command, words)

    async def capable(self, *names: str) -> None:
        wanted = [{"capability": name, "state": True} for name in names]
        await self.do("migrate-set-capabilities", capabilities=wanted)

    async def state(self) -> str:
        return str((await self.do("query-migrate")).get("status"))

    async def migration(self, *states: str) -> None:
        """Wait until its migration has come to one of these states."""
        async with asyncio.timeout(60):
            while (seen := await self.state()) not in states:
                assert seen not in ("failed", "cancelled"), await self.do("query-migrate")
                await asyncio.sleep(0.005)

    def ticks(self) -> list[tuple[int, int]]:
        """(seq, bad) of each line it wrote."""
        said = self.console.read_bytes() if self.console.exists() else b""
        return [(int(seq, 16), int(bad, 16)) for seq, bad in TICK.findall(said)]

    async def ticking(self, more: int = 5) -> None:
        before = len(self.ticks())
        await until(lambda: len(self.ticks()) >= before + more, "ticks of the guest")

    def end(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def pair(
    memory_mib: int = 32, pages: int = 4, wss: int = 2048
) -> AsyncIterator[tuple[RomMachine, RomMachine, Path]]:
    """A guest that ticks, a QEMU that waits for it, and a directory for sockets; none is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="novacron-pair-") as folder:
        made: list[RomMachine] = []
        try:
            for name in ("source", "target"):
                directory = Path(folder)
                made.append(
                    RomMachine(directory, name, memory_mib=memory_mib, pages=pages, wss=wss, incoming=name == "target")
                )
            for machine in made:
                await machine.ready()
                await machine.capable("events", "return-path")
            await made[0].ticking()
            yield made[0], made[1], Path(folder)
        finally:
            for machine in made:
                machine.end()


async def recorded(machine: RomMachine, directory: Path) -> bytes:
    """The whole stream of a guest, as it goes to a target that only listens."""
    came = bytearray()
    over = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            came.extend(data)
        writer.close()
        over.set()

    async with await asyncio.start_unix_server(take, directory / "record"):
        await machine.do("migrate", uri=f"unix:{directory / 'record'}")
        await over.wait()
    return bytes(came)
