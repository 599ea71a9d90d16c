"""Runs storage tools: bounded in memory, processor, time and words, and as an unprivileged user when the agent is root.

A tool gets files as open descriptors (`/dev/fd/N`), not as paths: it reaches what it was given and nothing beside it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from novacron.agent.as_user import as_user
from novacron.child import heard
from novacron.errors import DriverError, NoRoom, Reason, StateConflict, Unavailable

GIB = 1 << 30
MAX_WORDS = 2048  # of what a tool says on stderr
MAX_ANSWER_BYTES = 4 << 20  # of what it says on stdout

_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_LOCKED = ('Failed to get "', 'Failed to get shared "', "Failed to lock byte")
_GONE = (
    errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN,
    errno.ESTALE,
)  # fmt: skip
_AWAY = (*map(os.strerror, _GONE), "Failed to connect", "connect to the cluster", "connecting to the cluster")


class Limits(msgspec.Struct, frozen=True):
    """What a tool may use before it is ended."""

    memory_bytes: int = GIB
    cpu_s: int = 30
    deadline_s: float = 60.0


QUICK = Limits()
COPY = Limits(cpu_s=3600, deadline_s=6 * 3600.0)
"""For tools that move a whole volume."""


class Tools:
    """uid: as whom tools run when the agent is root; None: as the agent itself."""

    def __init__(self, uid: int | None = None) -> None:
        self.uid = uid if os.geteuid() == 0 else None

    async def run(
        self,
        program: str,
        *words: str,
        descriptors: Iterable[int] = (),
        uid: int | None = None,
        limits: Limits = QUICK,
    ) -> bytes:
        """What it answers on stdout. descriptors: those it inherits; uid: instead of the tools' own, when root.

        :raise NoRoom: storage is full. :raise StateConflict: a machine has the volume open.
        :raise Unavailable: its server cannot be reached, or it is not installed.
        :raise DeadlineExceeded: it was ended. :raise DriverError: anything else, with its words.
        """
        process = await self._start(program, words, tuple(descriptors), uid, limits)
        said = await heard(
            process,
            program,
            within_s=limits.deadline_s,
            answer_bytes=MAX_ANSWER_BYTES + 1,
            words_bytes=MAX_WORDS,
        )
        if said.code != 0:
            raise trouble(program, said.code, said.words.decode("utf-8", "replace").strip())
        if len(said.answer) > MAX_ANSWER_BYTES:
            raise DriverError(f"{program} answered with more than {MAX_ANSWER_BYTES} bytes")
        return said.answer

    async def _start(
        self, program: str, words: tuple[str, ...], descriptors: tuple[int, ...], uid: int | None, limits: Limits
    ) -> asyncio.subprocess.Process:
        user = uid if uid is not None and self.uid is not None else self.uid
        bounds = (f"--as={limits.memory_bytes}", f"--cpu={limits.cpu_s}", "--core=0")
        try:
            return await asyncio.create_subprocess_exec(
                *as_user(user, user), "prlimit", *bounds, "--", program, *words,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}, cwd="/", pass_fds=descriptors,
            )  # fmt: skip
        except FileNotFoundError as missing:
            raise Unavailable("prlimit is not installed: install util-linux") from missing


def trouble(program: str, code: int, said: str) -> Exception:
    """The error a tool's end and words come to."""
    name = Path(program).name
    if any(words in said for words in _FULL):
        return NoRoom(f"the storage pool is full: make room or take another ({name}: {said})")
    if any(words in said for words in _LOCKED):
        remedy = "stop the machine, or ask it"
        return StateConflict(
            "the volume is in use by a running machine", [Reason("volume.in_use", f"{name}: {said}", remedy=remedy)]
        )
    if any(words in said for words in _AWAY):
        return Unavailable(f"the storage pool cannot be reached ({name}: {said})")
    if code == 127 and "failed to execute" in said:
        return Unavailable(f"{name} is not installed on this node")
    return DriverError(f"{name} ended with {code}: {said or 'it said nothing'}")


def at(descriptor: int) -> str:
    """The name under which a tool finds a descriptor it inherits."""
    return f"/dev/fd/{descriptor}"
