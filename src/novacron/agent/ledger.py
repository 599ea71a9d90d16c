"""What this node remembers of each machine across its own restarts: its spec, its role, and the generation floor.

    state_dir/machines/<vm_id>/machine.json     one Holding each, replaced whole by fsync and rename

The floor is the highest generation this node ever acted under for a machine (rule R9): whoever speaks of an older one
is refused, also long after the machine has gone. That is why a machine that left keeps its small file.
"""

from __future__ import annotations

import asyncio
import datetime
import threading
import weakref
from enum import StrEnum
from pathlib import Path

import msgspec
import structlog

from novacron.durable import write_durably
from novacron.errors import InvalidInput, NovaCronError, StaleGeneration, StoreCorrupt
from novacron.model.identity import is_id
from novacron.model.machine import MachineReport, MachineSpec
from novacron.model.migration import Figures

FILE = "machine.json"


class Role(StrEnum):
    """What the machine is to this node."""

    OWNED = "owned"  # ours to run
    LEAVING = "leaving"  # ours, but its state may have left: only `reclaim` makes it run again
    INCOMING = "incoming"  # of another node; may run here only after `take_over`
    GONE = "gone"  # nothing here; the floor is kept


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What came of some of a machine's disks with a migration that failed. spec: says where they lie."""

    migration_id: str
    spec: MachineSpec
    volumes: tuple[str, ...]
    until: datetime.datetime


class Holding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One machine as this node holds it.

    generation: the floor. boot_id: of the host when it was started. ended: how its process ended, None while it
    runs. figures: what `release` measured, kept so that a repeated release answers the same. called_off: the last
    migration taken back here, so that a `send` of it that was long on its way starts nothing. restored: the last revert
    done here, so that asking for it again throws nothing away. halted: the migration it was shut down for. boots:
    (incoming) nothing of it is streamed; it boots when it is taken over. received: (incoming) volumes that were made
    here for it, or are about to be, and are deleted with it; belongings: likewise its directory beside them. at_rest:
    (leaving) its guest is not to run here: its disks are open to be copied. elsewhere: (leaving) the machine with those
    volumes of `received` that are made on this node. pivoting: (leaving) the migration whose copies it may work with
    already: they are not deleted. sent: the last one that its state was sent by, or was about to be. resumable:
    (incoming) those of `received` of which it can be told later what has come; resumed: those that hold what came with
    an earlier migration, `resumes`. kept: (gone) what has come with the last one, for the next to go on with.
    """

    vm_id: str
    generation: int
    role: Role
    spec: MachineSpec | None = None
    migration_id: str = ""
    boot_id: str = ""
    ended: MachineReport | None = None
    figures: Figures | None = None
    called_off: str = ""
    restored: str = ""
    halted: str = ""
    boots: bool = False
    received: tuple[str, ...] = ()
    belongings: bool = False
    at_rest: bool = False
    elsewhere: MachineSpec | None = None
    pivoting: str = ""
    sent: str = ""
    resumable: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    resumes: str = ""
    kept: Kept | None = None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Holding)


class Ledger:
    """The holdings: in memory, and each on disk before `put` returns. One turn at a time a machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._holdings: dict[str, Holding] = {}
        self._written: dict[str, Holding] = {}
        self._unreadable: dict[str, str] = {}
        self._writing: dict[str, threading.Lock] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._log = structlog.get_logger("ledger")

    def load(self) -> None:
        """Read what is on disk. A file that cannot be read bars its machine alone; it is logged and left as it is."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in sorted(self._directory.glob(f"*/{FILE}")):
            vm_id = file.parent.name
            try:
                holding = _decoder.decode(file.read_bytes())
                if holding.vm_id != vm_id:
                    raise msgspec.ValidationError(f"it speaks of {holding.vm_id!r}")
            except (OSError, msgspec.DecodeError) as wrong:
                self._unreadable[vm_id] = str(wrong)
                self._log.error(
                    "a machine's file cannot be read; the machine is barred", file=str(file), why=str(wrong)
                )
            else:
                self._holdings[vm_id] = self._written[vm_id] = holding

    def get(self, vm_id: str) -> Holding | None:
        return self._holdings.get(vm_id)

    def all(self) -> list[Holding]:
        return list(self._holdings.values())

    def turn(self, vm_id: str) -> asyncio.Lock:
        """Held by whoever makes or ends the machine, so that two verbs never build and clear away at once."""
        turn = self._turns.get(vm_id)
        if turn is None:
            turn = self._turns[vm_id] = asyncio.Lock()
        return turn

    async def admit(self, vm_id: str, generation: int) -> Holding:
        """The holding, with the floor raised to `generation`; a machine never heard of is held as GONE.

        :raise StaleGeneration: the caller speaks of an ownership that has passed.
        :raise StoreCorrupt: the machine's file could not be read, so its floor is not known.
        """
        holding = self.check(vm_id, generation)
        if holding is not None and holding.generation == generation:
            return holding
        if holding is None:
            raised = Holding(vm_id=vm_id, generation=generation, role=Role.GONE)
        else:
            raised = msgspec.structs.replace(holding, generation=generation)
        await self.put(raised)
        return raised

    def check(self, vm_id: str, generation: int) -> Holding | None:
        """Like `admit`, but changes nothing."""
        if not is_id(vm_id):
            raise InvalidInput.field("vm_id", "is not an id", "give the VM's UUID")
        if vm_id in self._unreadable:
            raise StoreCorrupt(
                f"{self._directory / vm_id / FILE} cannot be read ({self._unreadable[vm_id]}): mend or remove it, "
                "then restart the agent"
            )
        holding = self._holdings.get(vm_id)
        if holding is not None and generation < holding.generation:
            raise StaleGeneration(
                f"generation {generation} of machine {vm_id} has passed: this node has seen {holding.generation}"
            )
        return holding

    async def put(self, holding: Holding) -> None:
        """Replace the holding: seen by readers at once, on disk when this returns.

        :raise NovaCronError: it could not be written; memory keeps it, and the next `put` writes it.
        """
        self._holdings[holding.vm_id] = holding
        try:
            await self._write(holding.vm_id)
        except OSError as wrong:
            raise NovaCronError(f"cannot write the file of machine {holding.vm_id}: {wrong}") from wrong

    async def _write(self, vm_id: str) -> None:
        """In a thread: a slow disk must not hold up another machine's hand-off."""
        await asyncio.to_thread(self.flush, vm_id)

    def flush(self, vm_id: str) -> None:
        """Write the newest holding, unless it is written. Blocks."""
        with self._writing.setdefault(vm_id, threading.Lock()):
            newest = self._holdings[vm_id]
            if self._written.get(vm_id) == newest:
                return
            directory = self._directory / vm_id
            directory.mkdir(mode=0o700, exist_ok=True)
            write_durably(directory / FILE, _encode(newest))
            self._written[vm_id] = newest
