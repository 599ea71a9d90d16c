"""What the driver notes about a machine in its run directory, so that another agent process can go on with it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from novacron.agent.drivers.qemu.process import Identity
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.model.machine import Endpoint, MachineSpec, MachineStatus
from novacron.model.migration import Figures

FILE = "machine.json"
MAX_BYTES = 256 << 10


class Role(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class Transfer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One migration seen from here. Times are of the agent's monotonic clock, which counts from the host's boot.

    was_paused: (source) reclaim must leave it so; finish_by_s: (source) given up then. taken_over: (target) it was
    told to run, or is about to be; from then on it is never discarded. closed: both sides are done with it; only its
    answers are still known.
    """

    migration_id: str
    role: Role
    host: str = ""
    port: int = 0
    was_paused: bool = False
    finish_by_s: float = 0.0
    began_at_s: float = 0.0
    stopped_at_s: float | None = None
    resumed_at_s: float | None = None
    taken_over: bool = False
    closed: bool = False
    figures: Figures | None = None


class Ending(msgspec.Struct, frozen=True):
    """How it ended, or will: noted before it is ended, so that nobody takes it for a crash."""

    status: MachineStatus
    reason: str


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One start of one machine. identity is None until the process is known; spec: with which it runs."""

    vm_id: str
    generation: int
    machine_type: str
    cpu_model: str
    accelerator: str
    uid: int | None = None
    gid: int | None = None
    guest_agent: bool = False
    copying: bool = False  # it begins as a copy, and is not yet one of its own
    frozen: bool = False  # its file systems were to be frozen, and nobody has thawed them since
    spec: MachineSpec | None = None
    keep: str = ""  # where the state of its TPM lies, and in which folder
    tpm: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    identity: Identity | None = None
    ending: Ending | None = None
    transfer: Transfer | None = None


def save(run_dir: RunDir, record: Record) -> None:
    """Replace the record on disk. :raise OSError: it cannot be written; the old one stands."""
    run_dir.write_own(FILE, msgspec.json.encode(record))


def load(run_dir: RunDir) -> Record | None:
    """The record, or None when there is none that the agent wrote whole."""
    try:
        data = run_dir.read_own(FILE, MAX_BYTES)
        return None if data is None else msgspec.json.decode(data, type=Record)
    except (OSError, msgspec.DecodeError):
        return None
