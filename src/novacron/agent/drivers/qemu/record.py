"""What the driver notes about a machine in its run directory, so that another agent process can go on with it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from novacron.agent.drivers.qemu.process import Identity
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.model.machine import Endpoint, MachineSpec, MachineStatus
from novacron.model.migration import Figures, Goals, Tactics

FILE = "machine.json"
MAX_BYTES = 256 << 10


class Role(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class Transfer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One migration seen from here. Times are of the agent's monotonic clock, which counts from the host's boot.

    Source: was_paused: reclaim must leave it so. finish_by_s: given up then. halted: we had its guest stand still, or
    were about to, so that QEMU does not let it go on by itself. switching: likewise, and the rest is to follow in
    post-copy. volumes: disks that must be alike on both sides before it has left. opened: the target was sent what it
    needs to run, or is about to be.

    Target: disk_port: where it takes in disks; layered: those of them that stand on an image; resumable: those in
    which what has come can be told from what has not. taken_over: it was told to run, or is about to be; from then on
    it is never discarded. paused: it is to stand instead. in_part: it runs, or is about to, with memory that is not all
    there.

    channels: connections that memory comes over at once. closed: both sides are done with it; only its answers are
    still known. socket: (target) where in its directory it listens for this node's stream proxy. proxied: (source) it
    sends to that of its own; patience_s: for how long nothing may move there.
    """

    migration_id: str
    role: Role
    host: str = ""
    port: int = 0
    disk_port: int = 0
    layered: tuple[str, ...] = ()
    resumable: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    socket: str = ""
    channels: int = 1
    proxied: bool = False
    patience_s: float = 0.0
    goals: Goals = Goals()
    tactics: Tactics = Tactics()
    was_paused: bool = False
    finish_by_s: float = 0.0
    began_at_s: float = 0.0
    stopped_at_s: float | None = None
    resumed_at_s: float | None = None
    halted: bool = False
    switching: bool = False
    opened: bool = False
    taken_over: bool = False
    paused: bool = False
    in_part: bool = False
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
    guarded: bool = False  # it has a guardian
    watched: bool = False  # it holds the lock by which the watchdog's keeper sees that it lives
    spec: MachineSpec | None = None
    keep: str = ""  # where the state of its TPM lies, and in which folder
    tpm: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    identity: Identity | None = None
    ending: Ending | None = None
    transfer: Transfer | None = None
    pivoting: bool = False  # its disks are being replaced by their copies, which are alike
    filling: str = ""  # the migration whose targets hold what came earlier, and do not yet hold all
    hot: dict[str, tuple[int, ...]] = {}  # by volume, blocks that its target gets when the guest stands still
    copied: str = ""  # the migration whose disks on the target are like its own, to the last write


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
