"""The watchdog as the agent sees it: has a keeper of the device (agent.keeper) started or met, and told until when.

The keeper outlives this agent. A device that cannot reset the host in time is refused, and the reason is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import structlog

from novacron.agent import keeper
from novacron.agent.drivers.qemu.rundir import SAFE, RunDir
from novacron.errors import Unsupported

_SOCKET = "watchdog.sock"
_LOG = "watchdog.log"
_START_WITHIN_S = 20.0
_ANSWER_WITHIN_S = 0.5
_MOST_BYTES = 4096


class Watchdog:
    """One device of this host. device: its path, from the settings alone."""

    def __init__(self, device: Path, run_dir: Path) -> None:
        self._device = device
        self._run_dir = run_dir
        self._line: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._timeout_s = 0
        self._started: subprocess.Popen[bytes] | None = None  # kept to be reaped
        self.armed = False
        self.was_armed = False
        self.said = "not open yet"
        self._log = structlog.get_logger("watchdog")

    async def ready(self, timeout_s: int, deadline_s: float) -> bool:
        """Have the host reset so long after it is last fed, and fed until the deadline at first; whether that is so."""
        if self.armed and self._timeout_s == timeout_s and self._line is not None:
            return True
        self.armed, self._timeout_s = False, timeout_s
        if timeout_s < 1:
            self._refuse(f"{self._device}: heartbeats are so short that no device resets in time")
            return False
        try:
            await self._open(timeout_s, deadline_s)
        except (OSError, Unsupported) as wrong:
            self._refuse(wrong.message if isinstance(wrong, Unsupported) else str(wrong))
        else:
            self.armed = self.was_armed = True
            self.said = f"{self._device} resets this host when it is not fed in time"
            self._log.info("armed", device=str(self._device), timeout_s=timeout_s)
        return self.armed

    async def arm(self, deadline_s: float, *, at_most: bool = False) -> bool:
        """Fed until then, or (at_most) no later. A keeper that has gone is followed by another, before the reset."""
        if not self.armed:
            return True
        answer = await self._say(keeper.AT_MOST if at_most else keeper.ARM, deadline_s)
        if answer is None:
            self._log.error("the watchdog's keeper does not answer; starting another", device=str(self._device))
            return await self.ready(self._timeout_s, deadline_s)
        return True

    async def end(self) -> None:
        """Have the device closed once nothing guarded lives; the keeper goes on until then, without this agent."""
        if self._line is None:
            return
        if await self._say(keeper.END, 0.0) == 0.0:
            self._log.warning("this watchdog cannot be stopped: its keeper feeds it for ever; do not end that")
        self._close()

    # -- parts ---------------------------------------------------------------------------------------------

    async def _open(self, timeout_s: int, deadline_s: float) -> None:
        """:raise Unsupported: the device is no use. :raise OSError: no keeper can be started."""
        with contextlib.suppress(OSError):
            self._close()
            self._line = RunDir(self._run_dir).connect(_SOCKET)
        if self._line is None:
            await self._begin(timeout_s, deadline_s)
            self._line = RunDir(self._run_dir).connect(_SOCKET)
        taken_s = await self._say(keeper.TIMEOUT, timeout_s)
        if taken_s is None or taken_s > timeout_s:
            await self._say(keeper.ARM, math.inf)  # nobody tells it deadlines from here on: it must not reset by one
            await self._say(keeper.END, 0.0)
            raise Unsupported(f"{self._device} does not reset within {timeout_s} s")
        await self._say(keeper.STAY, 0.0)
        await self._say(keeper.AT_MOST, deadline_s)  # what an agent before this one was given may be less, and stands

    async def _begin(self, timeout_s: int, deadline_s: float) -> None:
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            listening = opened.enter_context(RunDir(self._run_dir).listen(_SOCKET))
            lock = os.open(self._run_dir / keeper.LOCK, os.O_RDWR | os.O_CREAT | SAFE, 0o600)
            opened.callback(os.close, lock)
            log = os.open(self._run_dir / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | SAFE, 0o600)
            opened.callback(os.close, log)
            hears, tells = os.pipe2(os.O_CLOEXEC)
            opened.callback(os.close, hears)
            own = (listening.fileno(), lock, tells)
            try:
                self._started = subprocess.Popen(  # noqa: S603, ASYNC220 -- no shell; vfork and exec, nothing is waited for
                    [sys.executable, "-I", "-S", keeper.__file__, str(self._device), str(timeout_s), repr(deadline_s),
                     *map(str, own)],
                    cwd="/", env={}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=own,
                    start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(tells)
            said = await _line_of(hears)
        if not said:
            raise Unsupported(f"the watchdog's keeper did not come up: see {self._run_dir / _LOG}")
        if "error" in said:
            raise Unsupported(said["error"])

    async def _say(self, kind: int, value: float) -> float | None:
        """What the keeper answers; None: it does not."""
        if self._line is None:
            return None
        loop, heard = asyncio.get_running_loop(), b""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S), self._turn:
                await loop.sock_sendall(self._line, keeper.WORD.pack(kind, value))
                while len(heard) < keeper.WORD.size:
                    if not (more := await loop.sock_recv(self._line, keeper.WORD.size - len(heard))):
                        raise BrokenPipeError
                    heard += more
        except (TimeoutError, OSError):
            self._close()
            return None
        answer: float = keeper.WORD.unpack(heard)[1]
        return answer

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _refuse(self, why: str) -> None:
        self._close()
        if self.said != why:
            self._log.error("no watchdog ends this host", why=why)
        self.said = why


async def _line_of(hears: int) -> dict[str, Any]:
    """What the keeper tells of its device; empty: it has gone without a word, or takes too long."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(hears, heard.set)
    try:
        async with asyncio.timeout(_START_WITHIN_S):
            await heard.wait()
    except TimeoutError:
        return {}
    finally:
        loop.remove_reader(hears)
    said = os.read(hears, _MOST_BYTES)
    found: dict[str, Any] = json.loads(said) if said.endswith(b"\n") else {}
    return found
