"""The `rbd` and `ceph` commands as this node's tools: checked names in, JSON out."""

from __future__ import annotations

import contextlib
from typing import TypeVar

import msgspec

from novacron.agent.drivers.base import RbdAt
from novacron.agent.storage import keys
from novacron.agent.storage.tool import COPY, GIB, Limits, Tools, at
from novacron.errors import DriverError, NotFound

LIMITS = Limits(memory_bytes=4 * GIB, cpu_s=30, deadline_s=60.0)  # many threads, each with a stack
LONG = msgspec.structs.replace(COPY, memory_bytes=4 * GIB)

Answer = TypeVar("Answer")


class RbdTool:
    """Names are those of RBD images and snapshots in one pool."""

    def __init__(self, place: RbdAt, tools: Tools) -> None:
        self._at = place
        self._tools = tools

    async def space(self) -> tuple[int, int]:
        """Bytes free to the pool, and bytes its content takes. :raise NotFound: the cluster has no such pool."""
        found = self._read(await self._ask("ceph", "df"), _Df)
        pool = next((one for one in found.pools if one.name == self._at.pool), None)
        if pool is None:
            raise NotFound(f"the Ceph cluster has no pool {self._at.pool}")
        return pool.stats.max_avail, pool.stats.bytes_used

    async def names(self) -> tuple[str, ...]:
        return self._read(await self._ask("rbd", "ls", self._spec()), tuple[str, ...])

    async def has(self, name: str) -> bool:
        return name in await self.names()

    async def size(self, name: str) -> int:
        return self._read(await self._ask("rbd", "info", self._spec(name)), _Size).size

    async def used(self, name: str) -> int:
        """What it takes, snapshots included."""
        found = self._read(await self._ask("rbd", "du", self._spec(name)), _Du)
        return sum(one.used_size for one in found.images)

    async def create(self, name: str, size_bytes: int) -> None:
        await self._run("rbd", "create", "--size", f"{size_bytes}B", self._spec(name))

    async def clone(self, parent: str, snapshot: str, name: str, size_bytes: int) -> None:
        """A child of a protected snapshot, at least so large."""
        await self._run("rbd", "clone", self._spec(parent, snapshot), self._spec(name))
        if await self.size(name) < size_bytes:
            await self.resize(name, size_bytes)

    async def resize(self, name: str, size_bytes: int) -> None:
        """Larger; smaller is refused by the tool."""
        await self._run("rbd", "resize", "--no-progress", "--size", f"{size_bytes}B", self._spec(name))

    async def rename(self, name: str, to: str) -> None:
        await self._run("rbd", "rename", self._spec(name), self._spec(to))

    async def remove(self, name: str) -> None:
        await self._run("rbd", "rm", "--no-progress", self._spec(name), limits=LONG)

    async def flatten(self, name: str) -> None:
        """Give it blocks of its own, so that it needs its parent no more."""
        await self._run("rbd", "flatten", "--no-progress", self._spec(name), limits=LONG)

    async def snap(self, verb: str, name: str, snapshot: str) -> None:
        """verb: create, rollback or rm."""
        await self._run("rbd", "snap", verb, "--no-progress", self._spec(name, snapshot), limits=LONG)

    async def snapshots(self, name: str) -> dict[str, bool]:
        """Name → whether it is protected."""
        found = self._read(await self._ask("rbd", "snap", "ls", self._spec(name)), tuple[_Snapshot, ...])
        return {one.name: one.protected == "true" for one in found}

    async def protect(self, name: str, snapshot: str) -> None:
        """Let it have children. Already so: fine."""
        if not (await self.snapshots(name)).get(snapshot):
            await self._run("rbd", "snap", "protect", self._spec(name, snapshot))

    async def unprotect(self, name: str, snapshot: str) -> None:
        """It has no children any more. Already so: fine."""
        if (await self.snapshots(name)).get(snapshot):
            await self._run("rbd", "snap", "unprotect", self._spec(name, snapshot))

    async def children(self, name: str, snapshot: str) -> tuple[str, ...]:
        found = self._read(await self._ask("rbd", "children", self._spec(name, snapshot)), tuple[_Child, ...])
        return tuple(one.image for one in found)

    async def watchers(self, name: str) -> tuple[str, ...]:
        """Addresses of the clients that have it open for writing, or had until they were killed not long ago."""
        found = self._read(await self._ask("rbd", "status", self._spec(name)), _Status)
        return tuple(one.address for one in found.watchers)

    def _spec(self, name: str = "", snapshot: str = "") -> str:
        parts = (self._at.pool, *((self._at.namespace,) if self._at.namespace else ()), *((name,) if name else ()))
        return "/".join(parts) + (f"@{snapshot}" if snapshot else "")

    async def _ask(self, program: str, *words: str) -> bytes:
        return await self._run(program, *words, "--format", "json")

    async def _run(self, program: str, *words: str, limits: Limits = LIMITS) -> bytes:
        asked = [*words, "--conf", str(self._at.conf), "--id", self._at.user]
        with contextlib.ExitStack() as stack:
            lent: tuple[int, ...] = ()
            if self._at.key_file is not None:
                lent = (stack.enter_context(keys.lent(self._at.key_file, self._tools.uid)),)
                asked += ["--keyfile", at(lent[0])]
            return await self._tools.run(program, *asked, descriptors=lent, limits=limits)

    def _read(self, answer: bytes, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as wrong:
            raise DriverError(f"Ceph's answer cannot be read: {wrong}") from wrong


class _Size(msgspec.Struct):
    size: int


class _Used(msgspec.Struct):
    used_size: int


class _Du(msgspec.Struct):
    images: tuple[_Used, ...] = ()


class _Snapshot(msgspec.Struct):
    name: str
    protected: str = "false"


class _Child(msgspec.Struct):
    image: str


class _Watcher(msgspec.Struct):
    address: str


class _Status(msgspec.Struct):
    watchers: tuple[_Watcher, ...] = ()


class _Stats(msgspec.Struct):
    max_avail: int
    bytes_used: int = 0


class _Pool(msgspec.Struct):
    name: str
    stats: _Stats


class _Df(msgspec.Struct):
    pools: tuple[_Pool, ...] = ()
