"""How much a running guest writes and holds of its memory, before it moves.

QEMU samples pages, hashes them and looks again after a second. It has other modes; under TCG on 7.2 they end the
process. What it holds is what the kernel says is there of the one mapping that is guest memory.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec

from novacron.agent.drivers.qemu.machine import Machine
from novacron.errors import DeadlineExceeded, MonitorFailed, StateConflict, Unsupported
from novacron.model.machine import MachineStatus
from novacron.model.prediction import Measurement

COMMAND = "calc-dirty-rate"
FEATURE = f"qmp.{COMMAND}"
INTERVAL_S = 1
SAMPLES_PER_GIB = 4096
"""The most QEMU takes without its own default's error for small guests: one page in 64."""
POLL_S = 0.05
DEADLINE_S = 8.0
MIB = 1 << 20
MAX_SMAPS_BYTES = 8 << 20

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ", re.ASCII)
_FIELD = re.compile(r"^(Size|Rss):\s+([0-9]{1,15}) kB$", re.ASCII)


class _Sizes(msgspec.Struct, rename="kebab"):
    """query-memory-size-summary."""

    base_memory: int
    plugged_memory: int = 0


class _Rate(msgspec.Struct, rename="kebab"):
    """query-dirty-rate; the rate is in MiB a second."""

    status: str
    dirty_rate: int = 0


async def measured(machine: Machine, features: tuple[str, ...]) -> Measurement:
    """What it writes and holds now. Takes a second; one that stands still writes nothing and takes none.

    :raise StateConflict: it neither runs nor stands still, or its memory is on the way.
    :raise Unsupported: this QEMU cannot sample. :raise DeadlineExceeded: it did not come to an end.
    """
    if machine.leaving or machine.status not in (MachineStatus.RUNNING, MachineStatus.PAUSED):
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, ("running", "paused"), "measure")
    if FEATURE not in features:
        raise Unsupported(f"this QEMU cannot measure: it lacks {COMMAND}")
    sizes = await machine.door().ask(_Sizes, "query-memory-size-summary")
    dirtied = await _dirtied(machine) if machine.status is MachineStatus.RUNNING else 0
    memory = sizes.base_memory + sizes.plugged_memory
    identity = machine.record.identity
    used = memory
    if identity is not None and not sizes.plugged_memory:
        used = await asyncio.to_thread(_used_bytes, Path(f"/proc/{identity.pid}/smaps"), memory)
    return Measurement(
        at=machine.clock.wall(),
        interval_s=float(INTERVAL_S),
        dirtied_bytes=dirtied,
        memory_used_bytes=used,
        memory_bytes=memory,
    )


async def _dirtied(machine: Machine) -> int:
    """Bytes of different pages written in INTERVAL_S. Joins a sampling that is under way."""
    monitor = machine.door()
    arguments = {"calc-time": INTERVAL_S, "sample-pages": SAMPLES_PER_GIB, "mode": "page-sampling"}
    if (await monitor.ask(_Rate, "query-dirty-rate")).status != "measuring":
        await monitor.execute(COMMAND, arguments)
    give_up_s = machine.clock.monotonic_s() + DEADLINE_S
    await machine.clock.sleep(INTERVAL_S)
    while machine.clock.monotonic_s() < give_up_s:
        answer = await monitor.ask(_Rate, "query-dirty-rate")
        if answer.status == "measured":
            if answer.dirty_rate < 0:
                raise MonitorFailed(f"QEMU could not sample the memory of machine {machine.vm_id}")
            return answer.dirty_rate * MIB * INTERVAL_S
        await machine.clock.sleep(POLL_S)
    raise DeadlineExceeded(f"the memory of machine {machine.vm_id} was not sampled within {DEADLINE_S:g} s")


def _used_bytes(smaps: Path, memory_bytes: int) -> int:
    """All of it when it cannot be told: nothing is promised that is not known."""
    try:
        with smaps.open("rb") as file:
            text = file.read(MAX_SMAPS_BYTES).decode("ascii", "replace")
    except OSError:
        return memory_bytes
    return used_of(text, memory_bytes)


def used_of(smaps: str, memory_bytes: int) -> int:
    """How much of the mapping of exactly that size is there, from /proc/<pid>/smaps. Pure.

    Pages that were written with zeros count; they are sent in a few bytes.
    """
    size, found = 0, 0
    for line in smaps.splitlines():
        field = _FIELD.match(line)
        if _MAPPING.match(line):
            size = 0
        elif field and field[1] == "Size":
            size = int(field[2]) << 10
        elif field and size == memory_bytes:
            found = max(found, int(field[2]) << 10)
    return found or memory_bytes
