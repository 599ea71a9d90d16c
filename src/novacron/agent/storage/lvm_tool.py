"""LVM's commands as this node's tools: checked names in, its JSON report out. They need root, and run as the agent."""

from __future__ import annotations

import msgspec

from novacron.agent.storage.tool import Tools
from novacron.errors import DriverError, NotFound

FIELDS = "lv_name,lv_size,lv_attr,origin,data_percent,pool_lv"
_OPEN_AT = 5  # of lv_attr: `o` while a device is open


class Lv(msgspec.Struct, frozen=True):
    """One logical volume as `lvs` reports it."""

    lv_name: str
    lv_size: str
    lv_attr: str
    origin: str = ""
    data_percent: str = ""
    pool_lv: str = ""

    @property
    def size_bytes(self) -> int:
        return int(self.lv_size)

    @property
    def used_bytes(self) -> int:
        return int(self.size_bytes * float(self.data_percent or 0) / 100)

    @property
    def is_open(self) -> bool:
        return len(self.lv_attr) > _OPEN_AT and self.lv_attr[_OPEN_AT] == "o"


class LvmTool:
    """Names are those of logical volumes in one volume group."""

    def __init__(self, volume_group: str, thin_pool: str, tools: Tools) -> None:
        self._group = volume_group
        self._pool = thin_pool
        self._tools = tools

    async def thin_pool(self) -> Lv:
        """:raise NotFound: the volume group has no such thin pool."""
        found = (await self._all()).get(self._pool)
        if found is None or not found.lv_attr.startswith("t"):
            raise NotFound(f"the volume group {self._group} has no thin pool {self._pool}")
        return found

    async def volumes(self) -> dict[str, Lv]:
        """Those that lie in the thin pool, by name."""
        return {name: one for name, one in (await self._all()).items() if one.pool_lv == self._pool}

    async def create(self, name: str, size_bytes: int) -> None:
        size = ("--thin", "--virtualsize", f"{size_bytes}b")
        await self._run("lvcreate", "--yes", "--wipesignatures", "n", *size, "--name", name, self._spec(self._pool))

    async def share(self, name: str, origin: str) -> None:
        """A volume of its own that shares the origin's blocks; neither needs the other from then on."""
        await self._run("lvcreate", "--snapshot", "--setactivationskip", "n", "--name", name, self._spec(origin))

    async def extend(self, name: str, size_bytes: int) -> None:
        await self._run("lvextend", "--size", f"{size_bytes}b", self._spec(name))

    async def rename(self, name: str, to: str) -> None:
        await self._run("lvrename", self._group, name, to)

    async def remove(self, name: str) -> None:
        await self._run("lvremove", "--yes", self._spec(name))

    async def activate(self, name: str) -> None:
        """Have its device on this node. So already: fine."""
        await self._run("lvchange", "--activate", "y", "--ignoreactivationskip", self._spec(name))

    async def _all(self) -> dict[str, Lv]:
        words = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS, self._group)
        return parse(await self._run("lvs", *words))

    async def _run(self, program: str, *words: str) -> bytes:
        return await self._tools.run(program, *words)

    def _spec(self, name: str) -> str:
        return f"{self._group}/{name}"


class _Report(msgspec.Struct):
    lv: tuple[Lv, ...] = ()


class _Answer(msgspec.Struct):
    report: tuple[_Report, ...]


def parse(answer: bytes) -> dict[str, Lv]:
    """What `lvs --reportformat json` says, by name. :raise DriverError: it is not that."""
    try:
        found = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError as wrong:
        raise DriverError(f"lvs's answer cannot be read: {wrong}") from wrong
    return {one.lv_name: one for report in found.report for one in report.lv}
