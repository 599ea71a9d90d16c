"""A server process for benches: started, watched by its own log, measured, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

READY_WITHIN_S = 300.0
KEPT_LINES = 200


class Process:
    """One process by its id, and what it has cost so far."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_s(self) -> float:
        """CPU time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Memory it holds now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Server(Process):
    """A running server. ready_s: from its start until it served."""

    def __init__(self, process: asyncio.subprocess.Process, data: Path) -> None:
        super().__init__(process.pid)
        self._process = process
        self._data = data
        self._began_s = time.monotonic()
        self._ready: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
        self._awaited: dict[str, asyncio.Future[float]] = {}
        self.said: list[str] = []
        self.reading = asyncio.create_task(self._read())
        self.port, self.ready_s = 0, 0.0

    @property
    def token(self) -> str:
        return (self._data / "admin.token").read_text().strip()

    @property
    def secret(self) -> str:
        return (self._data / "agent.secret").read_text().strip()

    async def up(self) -> None:
        """Wait until it serves. :raise SystemExit: it does not; with the last that it said."""
        async with asyncio.timeout(READY_WITHIN_S):
            self.port, ready_at_s = await self._ready
        self.ready_s = ready_at_s - self._began_s

    def when(self, event: str) -> asyncio.Future[float]:
        """time.monotonic() at which it next logs that."""
        return self._awaited.setdefault(event, asyncio.get_running_loop().create_future())

    async def end(self) -> None:
        """As an operator does. Ended already: fine."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        await self.reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if line.startswith("ready "):
                self._ready.set_result((int(line.rsplit(":", 1)[1]), time.monotonic()))
                continue
            self.said = [*self.said[-KEPT_LINES:], line]
            with contextlib.suppress(ValueError):
                waiting = self._awaited.pop(json.loads(line).get("event", ""), None)
                if waiting is not None:
                    waiting.set_result(time.monotonic())
        if not self._ready.done():
            self._ready.set_exception(SystemExit("the server ended before it was ready: " + "".join(self.said)))


@contextlib.asynccontextmanager
async def server(
    data: Path, pool: Path, store: str, profile: Path | None = None, heartbeat_s: float = 2.0
) -> AsyncIterator[Server]:
    """One that serves; ended afterwards. store: as its flag; empty: SQLite in `data`. profile: where its calls are
    written when it ends; it is slower by that.
    """
    python: Sequence[str] = ["setpriv", "--pdeathsig", "TERM", sys.executable]  # should this process die
    module = ["-m", "cProfile", "-o", str(profile), "-m"] if profile else ["-m"]
    command = [*python, *module, "novacron.control", "--data-dir", str(data), "--pool-dir", str(pool), "--port", "0"]
    command += ["--log-format", "json", "--heartbeat-s", str(heartbeat_s), *(["--store", store] if store else [])]
    made = Server(
        await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, limit=1 << 20
        ),
        data,
    )
    try:
        await made.up()
        yield made
    finally:
        await made.end()
