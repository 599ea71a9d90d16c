"""What a snapshot costs a guest of 512 MiB: time in all, and how long it stands still. Prints a table.

    python -m tests.bench.snapshots [--rounds N]

`blank` has hardly touched its memory; `full` has written 400 MiB of it, each page with its own number. Disks lie in
the temporary directory. Figures are medians; under TCG, so read the disk's part of them as real, the guest's as slow.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import time

import msgspec

from novacron.agent.drivers.base import DiskFile, FileAt, Launch
from novacron.model.machine import StopMode
from tests.system import rom_machine
from tests.system.rom_machine import Host, an_id, until

MEMORY_MIB = 512
FULL_PAGES = 400 << 8
PAGES_A_TICK = 1000


class Guest:
    """One machine with one disk; full: it writes until 400 MiB are not blank, then goes on doing so."""

    def __init__(self, host: Host, *, full: bool) -> None:
        self.host, self.driver, self.vm_id, self.full = host, host.driver(), an_id(), full
        self.path = host.root.parent / f"{an_id()}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(self.path), "1G"], check=True)

    def launch(self) -> Launch:
        pages, wss = (PAGES_A_TICK, FULL_PAGES) if self.full else (0, 0)
        made = self.host.launch(self.vm_id, memory_mib=MEMORY_MIB, pages=pages, wss=wss)
        disk = DiskFile(volume_id=self.path.stem, source=FileAt(self.path), format="qcow2")
        return msgspec.structs.replace(made, disks=(disk,))

    async def start(self) -> None:
        await self.driver.start(self.launch())
        ticks = FULL_PAGES // PAGES_A_TICK + 2 if self.full else 3
        await until(lambda: len(self.host.ticks(self.vm_id)) >= ticks, "memory to be written", 300)


async def measure(full: bool, rounds: int) -> dict[str, list[float]]:
    """ms of each thing, round by round."""
    found: dict[str, list[float]] = {}

    def note(name: str, value_ms: float) -> None:
        found.setdefault(name, []).append(value_ms)

    async with rom_machine.hosts() as hosts:
        guest = Guest(hosts.new(), full=full)
        await guest.start()
        for _ in range(rounds):
            for memory in (False, True):
                kind, snapshot = "memory" if memory else "disks", an_id()
                began_s = time.monotonic()
                taken = await guest.driver.take_snapshot(guest.vm_id, snapshot, memory=memory)
                note(f"{kind}: take", (time.monotonic() - began_s) * 1e3)
                note(f"{kind}: guest waits", taken.stood_still_ms)
                if memory:
                    note("memory: MiB", taken.memory_bytes / (1 << 20))
                    await guest.driver.stop(guest.vm_id, StopMode.FORCED, 0)
                    began_s = time.monotonic()
                    await guest.driver.restore(guest.launch(), snapshot)
                    note("memory: revert, started anew", (time.monotonic() - began_s) * 1e3)
                    await guest.host.ticking(guest.vm_id)
                began_s = time.monotonic()
                await guest.driver.delete_snapshot(guest.vm_id, snapshot)
                note(f"{kind}: delete while it runs", (time.monotonic() - began_s) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name, full in (("blank", False), ("full", True)):
        found = asyncio.run(measure(full, rounds))
        for what, values in found.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{name:6} {what:30} {middle:8.1f}  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
