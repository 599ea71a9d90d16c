"""Who takes part in the migration bench: NovaCron, a bare QMP script, libvirt; each moves a guest of its own."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, Protocol

from novacron.client import migrations
from tests.bench.floor_moves import Floor
from tests.bench.guests import Guest
from tests.bench.libvirt import Domain


class Moved(NamedTuple):
    """What a contestant itself can say of a migration."""

    wall_ms: float
    start_ms: float | None = None
    qemu_ms: float | None = None
    bytes_transferred: int | None = None


class Contestant(Protocol):
    name: str
    address: str

    async def migrate(self) -> Moved: ...

    async def rest(self) -> None: ...

    async def wake(self) -> None: ...

    async def end(self) -> None: ...


class NovaCron:
    """A VM moved through the API. measure False: nobody asks what it writes before it moves."""

    name = "novacron"

    def __init__(self, guest: Guest, kind: str = "live") -> None:
        self._guest, self._kind, self.address = guest, kind, guest.address

    async def migrate(self) -> Moved:
        guest = self._guest
        wish = migrations.MigrationCreate(
            vm=guest.vm.id, target_node=guest.other_node, kind=self._kind, measure=False,
            strategy="precopy" if self._kind == "live" else None,
        )  # fmt: skip
        began = time.monotonic()
        done = await guest.move(wish)
        wall_ms = (time.monotonic() - began) * 1e3
        return Moved(wall_ms, None, done.figures.downtime_qemu_ms, done.figures.bytes_transferred)

    async def rest(self) -> None:
        await self._guest.rest()

    async def wake(self) -> None:
        await self._guest.wake()

    async def end(self) -> None:
        """The lab ends its machines."""


class Bare:
    """The floor, whose calls block."""

    def __init__(self, name: str, floor: Floor, address: str, kind: str = "live") -> None:
        self.name, self._floor, self.address, self._kind = name, floor, address, kind

    async def migrate(self) -> Moved:
        if self._kind == "cold":
            return Moved(await asyncio.to_thread(self._floor.reboot))
        took = await asyncio.to_thread(lambda: self._floor.migrate(stands_still=self._kind == "warm"))
        return Moved(took.wall_ms, took.start_ms, took.qemu_ms, took.bytes_transferred)

    async def rest(self) -> None:
        await asyncio.to_thread(self._floor.rest)

    async def wake(self) -> None:
        await asyncio.to_thread(self._floor.wake)

    async def end(self) -> None:
        await asyncio.to_thread(self._floor.end)


class Peer:
    """libvirt, with the machine type and CPU model of NovaCron's machine."""

    def __init__(self, name: str, domain: Domain, address: str) -> None:
        self.name, self._domain, self.address = name, domain, address

    async def migrate(self) -> Moved:
        return Moved(await self._domain.migrate())

    async def rest(self) -> None:
        await self._domain.rest()

    async def wake(self) -> None:
        await self._domain.wake()

    async def end(self) -> None:
        await self._domain.end()
