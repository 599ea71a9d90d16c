"""Whether a machine of this node can arrive in post-copy: its user must be allowed to handle its own page faults.

That is the kernel's affair (userfaultfd), and may change while QEMU stays as it is: so it is tried, by a throw-away
process that runs as machines do, and tried again when the kernel's setting has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import structlog

from novacron.agent.drivers.qemu.command import SANDBOX
from novacron.agent.drivers.qemu.features import asked, keep
from novacron.agent.drivers.qemu.migration import POSTCOPY, only
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, DriverError

FEATURE = "postcopy"
SETTING = Path("/proc/sys/vm/unprivileged_userfaultfd")
DEVICE = Path("/dev/userfaultfd")  # newer QEMUs use it where they may open it
REMEDY = "set the sysctl vm.unprivileged_userfaultfd to 1 (and keep it so in /etc/sysctl.d)"
NOBODY = 65534


def setting() -> str:
    """What the kernel lets users without powers do, by its setting and by the device that stands for it."""
    said = ""
    with contextlib.suppress(OSError):
        said = SETTING.read_text().strip()
    with contextlib.suppress(OSError):
        found = DEVICE.stat()
        said += f"-{found.st_mode:o}-{found.st_uid}-{found.st_gid}"
    return said


class PostcopyProbe:
    """Remembers what was found for as long as the kernel's setting is the same; what worked, also on disk."""

    def __init__(self, cache_dir: Path, clock: Clock) -> None:
        self._cache_dir = cache_dir
        self._clock = clock
        self._seen: str | None = None
        self._why = ""
        self._trying = asyncio.Lock()

    async def features(self, binary: Path, key: str, accelerator: str) -> tuple[str, ...]:
        """The feature, if machines can arrive so; else why not is said in the log, once. key: names the binary."""
        async with self._trying:
            now = setting()
            if now != self._seen:
                uid = NOBODY if os.geteuid() == 0 else None
                cached = self._cache_dir / f"postcopy-{os.geteuid()}-{now}-{key}"
                self._why = "" if cached.exists() else await self._try(binary, accelerator, uid)
                if self._why:
                    structlog.get_logger("qemu").warning("no post-copy to this node", why=self._why, remedy=REMEDY)
                self._seen = now if setting() == now else None  # changed meanwhile: of which was it true?
                if self._seen and not self._why:
                    keep(cached, b"")
            return () if self._why else (FEATURE,)

    async def _try(self, binary: Path, accelerator: str, uid: int | None) -> str:
        """What refused, in its own words; empty: it works."""
        waits = (
            "-incoming",
            "defer",
            "-sandbox",
            SANDBOX,
        )  # one that waits for a stream is whom the kernel is asked for
        try:
            async with asked(binary, accelerator, self._cache_dir, self._clock, *waits, uid=uid) as monitor:
                await monitor.execute("migrate-set-capabilities", only(POSTCOPY))
        except (DriverError, DeadlineExceeded) as wrong:
            return wrong.message
        return ""
