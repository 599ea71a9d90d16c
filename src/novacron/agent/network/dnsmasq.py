"""Runs one dnsmasq a network: started, told of new cards, found again after the agent's restart, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path

import msgspec

from novacron.agent.network import dhcp, tool
from novacron.agent.network.names import bridge_name
from novacron.errors import NovaCronError
from novacron.model.network import NetworkSpec

PROC = Path("/proc")
START_S, END_S = 20.0, 5.0


class Running(msgspec.Struct, frozen=True):
    """Which process it is; a number alone may be another's by now."""

    pid: int
    started: str


class Dnsmasq:
    """The servers of this node's networks. They outlive the agent. `directory`: must not outlive a reboot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def ensure(self, spec: NetworkSpec, cards: dict[str, tuple[str, ...]]) -> None:
        """Have it run with these settings and these cards. One that does is not touched.

        :raise Unsupported: there is no dnsmasq. :raise NovaCronError: it does not start; it says why.
        """
        own = self._directory / spec.id
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        own.mkdir(mode=0o755, exist_ok=True)
        hosts, conf, pid_file = own / "hosts", own / "dnsmasq.conf", own / "dnsmasq.pid"
        told = dhcp.settings(spec, bridge_name(spec.id), str(hosts), str(pid_file))
        fresh_cards = _replace(hosts, dhcp.hosts(cards), 0o644)
        running = self._running(own)
        if _replace(conf, told, 0o600) and running is not None:
            await _end(running)
            running = None
        if running is None:
            await self._start(own, conf, pid_file)
        elif fresh_cards:
            _signal(running, signal.SIGHUP)

    async def end(self, network_id: str) -> None:
        """Absent: fine."""
        own = self._directory / network_id
        running = self._running(own)
        if running is not None:
            await _end(running)
        for name in ("hosts", "dnsmasq.conf", "dnsmasq.pid", "running.json"):
            (own / name).unlink(missing_ok=True)
        if own.exists():
            own.rmdir()

    def pid(self, network_id: str) -> int | None:
        """The process that serves a network, or None."""
        running = self._running(self._directory / network_id)
        return running.pid if running else None

    async def _start(self, own: Path, conf: Path, pid_file: Path) -> None:
        """It answers its start when it listens, and goes into the background by itself."""
        program = tool.need("dnsmasq", "dnsmasq-base")
        done = await tool.run([program, f"--conf-file={conf}"], deadline_s=START_S)
        if done.code != 0:
            raise NovaCronError(f"dnsmasq does not start: {done.words[:500]}")
        _note(own, pid_file)

    def _running(self, own: Path) -> Running | None:
        try:
            found = msgspec.json.decode((own / "running.json").read_bytes(), type=Running)
        except (OSError, msgspec.DecodeError):
            return None
        return found if _started(found.pid) == found.started else None


def _note(own: Path, pid_file: Path) -> None:
    """It has written its number before the start was answered."""
    pid = int(pid_file.read_text())
    started = _started(pid)
    if started is None:
        raise NovaCronError("dnsmasq ended right after its start; read the system's log")
    _replace(own / "running.json", msgspec.json.encode(Running(pid, started)).decode(), 0o600)


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own ticks; None: it has ended."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _signal(running: Running, number: int, wait_s: float = 0.0) -> bool:
    """Whether it has ended when `wait_s` have passed. By a handle: whoever has the pid meanwhile is not hit."""
    try:
        handle = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return True
    try:
        if _started(running.pid) != running.started:
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        return bool(select.select([handle], [], [], wait_s)[0])
    finally:
        os.close(handle)


async def _end(running: Running) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if await asyncio.to_thread(_signal, running, number, END_S):
            return
    raise NovaCronError(f"dnsmasq {running.pid} does not end")


def _replace(file: Path, content: str, mode: int) -> bool:
    """Whether it was something else before."""
    if file.exists() and file.read_text() == content:
        return False
    temporary = file.with_name(f".{file.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w") as opened:
        os.fchmod(handle, mode)
        opened.write(content)
    temporary.replace(file)
    return True
