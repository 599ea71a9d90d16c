"""What can be seen of a ROM guest from outside while it moves: its QEMUs, and each tick that any of them made."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from novacron.lab.lab import Lab

LOOK_S = 0.02
TICK = re.compile(rb"^T ([0-9a-f]{8}) ([0-9a-f]{8})\n", re.MULTILINE)


def qemus(lab: Lab, vm_id: str) -> dict[str, int]:
    """Node → pid, as this machine counts, of each QEMU of the VM that is not dead yet."""
    homes = {str(home(lab, node, vm_id)): node for node in lab.nodes}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile, or is a zombie
                node = homes.get(str((entry / "cwd").readlink()))
                if node and b"qemu" in (entry / "cmdline").read_bytes().partition(b"\0")[0]:
                    found[node] = int(entry.name)
    return found


def home(lab: Lab, node: str, vm_id: str) -> Path:
    """Where that node has the machine's sockets, console and the like while it has the machine."""
    return lab.path / node / "run" / vm_id


class Watch:
    """Every tick of a guest, and where it was made. `wrong` holds what must never be."""

    def __init__(self, lab: Lab, vm_id: str) -> None:
        self._consoles = {node: home(lab, node, vm_id) / "console.log" for node in lab.nodes}
        self._read: dict[str, tuple[int, int]] = {}  # node → the file, and how much of it
        self.made: dict[int, str] = {}
        self.wrong: list[str] = []
        self.boots_anew()
        self.wrong.clear()  # of its lives before

    @property
    def last(self) -> int:
        return max(self.made, default=0)

    def look(self) -> None:
        for node, path in self._consoles.items():
            with suppress(FileNotFoundError), path.open("rb") as file:
                stat, (before, offset) = os.fstat(file.fileno()), self._read.get(node, (0, 0))
                which = stat.st_ino  # of a new file perhaps that of one which is gone
                file.seek(offset if which == before and offset <= stat.st_size else 0)
                start, text = file.tell(), file.read()
                whole = text.rfind(b"\n") + 1
                self._read[node] = which, start + whole
                for seq, bad in TICK.findall(text[:whole]):
                    self._take(node, int(seq, 16), int(bad, 16))

    def boots_anew(self) -> None:
        """What comes next is another life of it."""
        self.look()
        self.made.clear()

    async def more(self, ticks: int = 5) -> None:
        """Return when it has ticked on."""
        self.look()
        wanted = self.last + ticks
        while self.last < wanted:
            await asyncio.sleep(LOOK_S)
            self.look()

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def _take(self, node: str, seq: int, bad: int) -> None:
        if seq in self.made:
            self.wrong.append(f"tick {seq} was made on {self.made[seq]} and again on {node}")
        if bad:
            self.wrong.append(f"at tick {seq} on {node} {bad} pages are not what the guest wrote")
        self.made[seq] = node


@asynccontextmanager
async def watched(lab: Lab, vm_id: str) -> AsyncIterator[Watch]:
    """Looks all the while."""
    watch = Watch(lab, vm_id)
    looking = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
