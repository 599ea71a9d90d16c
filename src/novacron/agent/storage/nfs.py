"""A directory pool on a network file system that the operator mounted: nothing is written when it is not mounted."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec

from novacron.agent.storage.base import Space
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.tool import Tools
from novacron.errors import Unavailable

KINDS = frozenset({"nfs", "nfs4"})
MOUNTS = Path("/proc/self/mountinfo")
ANSWER_S = 10.0


class Mount(msgspec.Struct, frozen=True):
    """What is mounted somewhere: its file system's type, and what it was mounted from."""

    kind: str
    source: str


class NfsPool(DirectoryPool):
    """path: the mount point. source: `server:/export` it must be mounted from; empty: any. kinds: types accepted."""

    def __init__(
        self, path: Path, source: str = "", tools: Tools | None = None, *, kinds: frozenset[str] = KINDS
    ) -> None:
        super().__init__(path, tools=tools)
        self._source = source
        self._kinds = kinds

    async def check(self) -> None:
        """:raise Unavailable: something else, or nothing, is mounted there. Never asks the file server."""
        mount = mounted_at(self._dir, await asyncio.to_thread(MOUNTS.read_text))
        if mount is None:
            raise Unavailable(f"nothing is mounted at {self._dir}: mount {self._source or 'the NFS export'} there")
        if mount.kind not in self._kinds:
            raise Unavailable(f"{self._dir} holds a {mount.kind} file system, not NFS: mount the NFS export there")
        if self._source and mount.source != self._source:
            raise Unavailable(f"{self._dir} is mounted from {mount.source}, not from {self._source}")

    async def space(self) -> Space:
        """:raise Unavailable: the file server does not answer in time."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await super().space()
        except TimeoutError as late:
            raise Unavailable(f"the file server of {self._dir} did not answer within {ANSWER_S:.0f} s") from late


def mounted_at(path: Path, mountinfo: str) -> Mount | None:
    """What /proc/self/mountinfo says is mounted exactly there, the last on top. None: nothing is."""
    found = None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        place, about = fields.split(" "), rest.split(" ")
        if len(place) > 4 and len(about) > 1 and _plain(place[4]) == str(path):
            found = Mount(about[0], _plain(about[1]))
    return found


def _plain(text: str) -> str:
    """The kernel writes blanks and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
