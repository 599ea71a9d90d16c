"""A ROM machine that moves between two hosts, over a link that can be cut, stalled and closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited, Departure, Reception
from novacron.agent.drivers.qemu import QemuDriver
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Figures, Goals, Progress, Tactics
from tests.system.rom_machine import TICK, Host, Hosts, an_id

LOOPBACK = "127.0.0.1"
CHUNK = 64 << 10
BUSY = 200  # pages a tick: 80 MiB/s
WORKING_SET = 4096  # pages: 16 MiB


def nothing(_: Progress) -> None:
    """A listener who does not care."""


class Link:
    """What lies between the hosts: a relay that forgets nothing it has taken in, until it is cut."""

    def __init__(self) -> None:
        self._to = (LOOPBACK, 0)
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.carried = 0
        self.openings: list[bytes] = []  # what came first, in each direction of each connection

    async def lead_to(self, to: Reception) -> Reception:
        """A way through here to where the target listens."""
        self._to = (to.host, to.port)
        self._flows.set()
        if self._server is None:
            listening = socket.create_server((LOOPBACK, 0))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)  # what stalls here stalls there
            self._server = await asyncio.start_server(self._relay, sock=listening)
        return msgspec.structs.replace(to, port=self._server.sockets[0].getsockname()[1])

    async def cut(self, *, refuse: bool = False) -> None:
        """Every connection ends; refuse: and none is taken until a way is asked for again."""
        if refuse and self._server is not None:
            self._server.close()
            self._server = None
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def stall(self) -> None:
        """Nothing moves any more, and nobody is told."""
        self._flows.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        pumps = {asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))}
        self._pumps |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._pumps -= pumps
        back.transport.abort()
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        while data := await reader.read(CHUNK):
            if first:
                self.openings.append(data)
                first = False
            await self._flows.wait()
            writer.write(data)
            self.carried += len(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()


@contextlib.asynccontextmanager
async def link() -> AsyncIterator[Link]:
    made = Link()
    try:
        yield made
    finally:
        await made.cut(refuse=True)


class Move:
    """A machine that ticks and writes on `one`, and is to tick on `other`."""

    def __init__(self, hosts: Hosts, pages: int = BUSY, stall_s: float = 30.0) -> None:
        self.pages = pages
        self.one, self.other = hosts.new(), hosts.new()
        self.stall_s = stall_s
        self.source, self.target = self.one.driver(stall_s), self.other.driver(stall_s)
        self.vm_id, self.migration_id = an_id(), an_id()

    def launch(self, host: Host) -> Launch:
        return host.launch(self.vm_id, pages=self.pages, wss=WORKING_SET)

    async def prepare(self) -> Reception:
        """It runs here, and is awaited there."""
        await self.source.start(self.launch(self.one))
        await self.one.ticking(self.vm_id)
        return await self.target.accept(self.launch(self.other), Awaited(migration_id=self.migration_id, host=LOOPBACK))

    async def send(self, to: Reception, tactics: Tactics, goals: Goals) -> Departure:
        return await self.source.send(self.vm_id, self.migration_id, to, goals, nothing, tactics)

    async def take_over(self) -> None:
        arrival = await self.target.take_over(self.vm_id, self.migration_id, 2)
        assert arrival.report.status is MachineStatus.RUNNING

    async def finish(self) -> Figures:
        """All memory is there: the target is verified, the source ends, and nothing was lost on the way."""
        await self.target.verify(self.vm_id)
        figures = await self.source.release(self.vm_id, self.migration_id)
        assert self.one.pids() == []
        await self.other.ticking(
            self.vm_id, 2 * WORKING_SET // self.pages if self.pages else 3
        )  # each page looked at since
        self.check()
        return figures

    def check(self) -> None:
        """No tick was lost or done twice, and no page held anything but what was last written there."""
        lines = self.one.console(self.vm_id) + self.other.console(self.vm_id)  # one may have begun here and ended there
        ticks = [(int(seq, 16), int(bad, 16)) for seq, bad in TICK.findall(lines)]
        assert [seq for seq, _ in ticks] == list(range(1, len(ticks) + 1))
        assert [bad for _, bad in ticks if bad] == []

    async def restart_source(self) -> MachineReport:
        await self.source.close()
        self.source = self.one.driver(self.stall_s)
        return (await self.source.adopt(self.one.run_dirs()))[0]

    async def restart_target(self) -> MachineReport:
        await self.target.close()
        self.target = self.other.driver(self.stall_s)
        return (await self.target.adopt(self.other.run_dirs()))[0]

    def at_source(self) -> MachineStatus:
        return _status(self.source, self.vm_id)

    def at_target(self) -> MachineStatus:
        return _status(self.target, self.vm_id)

    def state(self, driver: QemuDriver) -> str:
        """The migration state as QEMU last said it there."""
        return driver._fleet.machines[self.vm_id].migration_state


def _status(driver: QemuDriver, vm_id: str) -> MachineStatus:
    report = driver.report(vm_id)
    return report.status if report else MachineStatus.ABSENT
