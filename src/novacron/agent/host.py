"""What this node has and uses, read from /proc and /sys."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

from novacron import __version__
from novacron.agent.machines import running
from novacron.agent.network import ability
from novacron.agent.network.tap import bridges
from novacron.agent.storage.depot import OwnPool
from novacron.agent.storage.kinds import abilities
from novacron.errors import Unavailable
from novacron.model.machine import MachineReport
from novacron.model.node import COPIES, DriverFacts, NodeFacts, NodeUsage

PROC = Path("/proc")
MAX_READ = 1 << 20


class Host:
    """The node's facts and usage. `proc`: where procfs is. `tunnel_address`: told if networks may span this node."""

    def __init__(self, pool: OwnPool, migration_address: str, proc: Path = PROC, *, tunnel_address: str = "") -> None:
        self._pool = pool
        self._migration_address = migration_address
        self._tunnel_address = tunnel_address
        self._proc = proc

    @property
    def boot_id(self) -> str:
        """Differs after every boot of the host."""
        return self._read("sys/kernel/random/boot_id").strip()

    async def facts(self, drivers: tuple[DriverFacts, ...]) -> NodeFacts:
        """Everything that changes seldom. A pool that is not there now is left out."""
        model, flags = cpu(self._read("cpuinfo"))
        try:
            pool_ids: tuple[str, ...] = (await self._pool.pool_id(),)
        except Unavailable:
            pool_ids = ()
        overlay = bool(self._tunnel_address) and not ability.missing()
        return NodeFacts(
            hostname=socket.gethostname(),
            kernel=platform.release(),
            architecture=platform.machine(),
            boot_id=self.boot_id,
            cpu_model=model,
            cpu_flags=flags,
            cpu_count=os.cpu_count() or 1,
            memory_mib=memory_mib(self._read("meminfo"), "MemTotal"),
            agent_version=__version__,
            pool_ids=pool_ids,
            bridges=await bridges(),
            drivers=drivers,
            migration_address=self._migration_address,
            privileged=os.geteuid() == 0,
            tunnel_address=self._tunnel_address if overlay else "",
            abilities=(*([ability.OVERLAY] if overlay else []), *abilities(), COPIES),
        )

    def usage(self, machines: tuple[MachineReport, ...]) -> NodeUsage:
        """What changes all the time. A pool that is not there counts as nothing."""
        try:
            free, size = self._pool.usage()
        except Unavailable:
            free = size = 0
        return NodeUsage(
            memory_available_mib=memory_mib(self._read("meminfo"), "MemAvailable"),
            load_1m=float(self._read("loadavg").split()[0]),
            pool_free_bytes=free,
            pool_size_bytes=size,
            machines_running=running(machines),
        )

    def _read(self, name: str) -> str:
        with (self._proc / name).open(encoding="ascii", errors="replace") as file:
            return file.read(MAX_READ)


def cpu(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """Model and flags of the first CPU, as /proc/cpuinfo words them on x86 and Arm."""
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    model = found.get("model name") or found.get("cpu part") or "unknown"
    flags = found.get("flags") or found.get("features") or ""
    return model, tuple(sorted(flags.split()))


def memory_mib(meminfo: str, what: str) -> int:
    """A figure of /proc/meminfo, which counts in KiB. 0: it is not there."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == what:
            return int(value.split()[0]) // 1024
    return 0
