"""Verbs by which a machine and its disks are moved: those of migrations, and of rehearsals, which copy disks alike."""

from __future__ import annotations

import msgspec

from novacron.model.blocks import Sample
from novacron.model.machine import MachineReport, MachineSpec
from novacron.model.migration import Goals, Tactics
from novacron.model.network import Flow
from novacron.model.pool import PoolSpec
from novacron.wire.verb import MachineVerb


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that comes through the proxies of both agents. peer: the one address its source may come from; scope:
    whose pages may be used for it, and kept of it.
    """

    peer: str
    scope: str


class Accept(msgspec.Struct, frozen=True, kw_only=True):
    """(target) → Reception. The spec carries the pins and the generation of the source.

    boots: no memory is streamed; it boots when it is taken over (or, at_rest, does not), and the reception says nothing
    but of disks. receives: its disks that are copied here: made anew, and filled by the source. belongings: likewise
    what belongs to it beside them. paused: it stands still when it is taken over, too. proxy: None: QEMU's own
    connection. An agent that knows no proxies gives a reception that is not proxied. channels: connections of QEMU's
    that memory comes over at once; the reception says how many it will be. anew: what came of its disks before is not
    gone on with, not even by this very migration.
    """

    migration_id: str
    spec: MachineSpec
    boots: bool = False
    receives: tuple[str, ...] = ()
    belongings: bool = False
    paused: bool = False
    proxy: Proxy | None = None
    channels: int = 1
    anew: bool = False


class DisksAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where the target takes in disks, and the key (a secret: never logged or stored). layered: those that stand on an
    image there too. resumable: those of which it can be told later what has come; resumed: those that hold what came
    with the migration `resumes`.
    """

    host: str
    port: int
    key_hex: str
    layered: tuple[str, ...] = ()
    resumable: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    resumes: str = ""


class ReceptionAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where the target listens, and the key of this one migration (a secret: never logged or stored).

    proxied: its agent does, and takes what the source's agent sends; else its QEMU. channels: connections it wants.
    """

    host: str
    port: int
    key_hex: str
    proxied: bool = False
    channels: int = 1
    disks: DisksAt | None = None


class CopyDisks(MachineVerb, frozen=True, kw_only=True):
    """(source) Make the target's disks like its own, and keep them so as the guest writes. → DisksCopied

    volumes: which. spec: the machine as it is here; at_rest: it does not run, and its disks are opened for this alone.
    """

    migration_id: str
    to: DisksAt
    volumes: tuple[str, ...]
    spec: MachineSpec
    goals: Goals
    at_rest: bool = False


class DisksCopied(msgspec.Struct, frozen=True, kw_only=True):
    copied_bytes: int


class CopyOut(MachineVerb, frozen=True, kw_only=True):
    """(source) Copy its disks for a rehearsal's machine, while it runs on and stays this node's own. → DisksCopied

    exports: by volume, what its copy is called there.
    """

    rehearsal_id: str
    to: DisksAt
    exports: dict[str, str]
    bandwidth_bytes_per_s: int = 0


class DropCopy(MachineVerb, frozen=True, kw_only=True):
    """(source) End that copying at whatever moment. Nothing of it here: fine. → None"""

    rehearsal_id: str


class Measure(MachineVerb, frozen=True, kw_only=True):
    """(source) How much it writes, and what it holds of its memory. Takes a second, changes nothing. → Measurement"""


class Send(MachineVerb, frozen=True, kw_only=True):
    """(source) → Departed"""

    migration_id: str
    to: ReceptionAt
    goals: Goals
    tactics: Tactics = Tactics()
    volumes: tuple[str, ...] = ()  # disks that must be alike on both sides when it stands still


class SetBandwidth(MachineVerb, frozen=True, kw_only=True):
    """(source) What is on its way of it goes no faster from now on; 0: as it goes. → None"""

    migration_id: str
    bytes_per_s: int


class Departed(msgspec.Struct, frozen=True, kw_only=True):
    """flows: conversations its cards' filters remember, for the target to go on with."""

    stopped_ago_ms: float
    flows: tuple[Flow, ...] = ()


class Halt(MachineVerb, frozen=True, kw_only=True):
    """(source) End it for a move without memory: its guest is asked, and made to at the deadline. → Departed

    stopped_ago_ms counts from the moment it was asked. volumes: disks that must be alike on both sides at its end.
    """

    migration_id: str
    deadline_s: float = 60.0
    volumes: tuple[str, ...] = ()


class CopyHere(MachineVerb, frozen=True, kw_only=True):
    """(source) Copy its disks into other pools of this node, and keep both alike as the guest writes. → DisksCopied

    volumes: which. spec: the machine as it is; wanted: with its disks where they are to be. at_rest: see CopyDisks.
    """

    migration_id: str
    volumes: tuple[str, ...]
    spec: MachineSpec
    wanted: MachineSpec
    goals: Goals
    at_rest: bool = False


class Pivot(MachineVerb, frozen=True, kw_only=True):
    """(source) From now on it works with the copies alone. wanted: as in CopyHere. → MachineReport"""

    migration_id: str
    wanted: MachineSpec


class Tidy(MachineVerb, frozen=True, kw_only=True):
    """(source) Its disks are where `wanted` says: delete those volumes where `spec` had them. → None"""

    migration_id: str
    volumes: tuple[str, ...]
    spec: MachineSpec
    wanted: MachineSpec


class OpenPostcopy(MachineVerb, frozen=True, kw_only=True):
    """(source) `generation` is the new one: the rest of its memory follows while it runs there. → None"""

    migration_id: str


class FetchRest(MachineVerb, frozen=True, kw_only=True):
    """(source) Wait until the target has all memory; to: by another stream than the one that broke. → RestFetched"""

    migration_id: str
    to: ReceptionAt | None = None


class RestFetched(msgspec.Struct, frozen=True, kw_only=True):
    """done: all memory is there; else why its stream broke."""

    done: bool
    why: str = ""


class Reopen(MachineVerb, frozen=True, kw_only=True):
    """(target) Listen anew for the rest of its memory. → ReceptionAt"""

    migration_id: str


class TakeOver(MachineVerb, frozen=True, kw_only=True):
    """(target) Continue under `generation`, which the committed record holds. epoch: as of Start. → Arrived"""

    migration_id: str
    epoch: int = 0
    flows: tuple[Flow, ...] = ()
    watch: tuple[str, ...] = ()  # volumes of which it is to be noted what is written from then on


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    resumed_ago_ms: float
    report: MachineReport


class Verify(MachineVerb, frozen=True, kw_only=True):
    """(target) → MachineReport"""

    migration_id: str


class Examine(MachineVerb, frozen=True, kw_only=True):
    """(target) Its guest's heartbeat and clock; a clock that is off is put right. → Signs"""

    migration_id: str


class Whereabouts(MachineVerb, frozen=True, kw_only=True):
    """(any node) What its hypervisor has of the machine right now; nothing: absent. → MachineReport"""


class ReadBlocks(MachineVerb, frozen=True, kw_only=True):
    """(either side) What is in blocks of a disk that was copied. → BlockDigests

    blocks: which; or sample: (source) it draws them. written: (target) also which of them were written since it took
    over; ends: (target) nothing is asked any more, and nothing more noted.
    """

    migration_id: str
    volume_id: str
    blocks: tuple[int, ...] = ()
    sample: Sample | None = None
    written: bool = False
    ends: bool = False


class Settle(MachineVerb, frozen=True, kw_only=True):
    """(target) Of a machine at rest: its disks have come, and nothing of it need be open here. → None"""

    migration_id: str


class Release(MachineVerb, frozen=True, kw_only=True):
    """(source) `generation` is the new one: the source's claim ends. volumes: those whose copies on the target count
    from now on: they are deleted here; belongings: and so is what belonged to it beside them. → Figures
    """

    migration_id: str
    volumes: tuple[str, ...] = ()
    belongings: bool = False


class Reclaim(MachineVerb, frozen=True, kw_only=True):
    """(source) epoch: as of Start. → MachineReport"""

    migration_id: str
    epoch: int = 0


class Discard(MachineVerb, frozen=True, kw_only=True):
    """(target) Volumes that were made for it go too. → None

    keep_s: what has come of them may stay for so long, for the next migration to go on with; 0: what was kept goes.
    """

    migration_id: str
    keep_s: float = 0.0


class PlacedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in a pool of the node's."""

    pool: PoolSpec
    volume_id: str


class DiscardCopies(MachineVerb, frozen=True, kw_only=True):
    """(source) Delete copies of its disks that were kept because the target's differ. Absent: fine. → None

    :raise StateConflict: a machine here has one of them.
    """

    migration_id: str
    copies: tuple[PlacedVolume, ...]


VERBS: dict[str, type[msgspec.Struct]] = {
    "migration.accept": Accept,
    "migration.copy_disks": CopyDisks,
    "migration.copy_here": CopyHere,
    "migration.pivot": Pivot,
    "migration.tidy": Tidy,
    "migration.measure": Measure,
    "migration.send": Send,
    "migration.set_bandwidth": SetBandwidth,
    "migration.halt": Halt,
    "migration.open_postcopy": OpenPostcopy,
    "migration.fetch_rest": FetchRest,
    "migration.reopen": Reopen,
    "migration.take_over": TakeOver,
    "migration.settle": Settle,
    "migration.verify": Verify,
    "migration.examine": Examine,
    "migration.read_blocks": ReadBlocks,
    "migration.whereabouts": Whereabouts,
    "migration.release": Release,
    "migration.reclaim": Reclaim,
    "migration.discard": Discard,
    "migration.discard_copies": DiscardCopies,
    "rehearsal.copy_out": CopyOut,
    "rehearsal.drop_copy": DropCopy,
}
