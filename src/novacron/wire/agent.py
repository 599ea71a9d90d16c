"""The line between server and agent: one WebSocket that the agent dials; JSON frames; many calls at once.

    agent → server   Hello, then Report (every 2 s and at each change), MigrationProgress, Reply
    server → agent   Welcome, then Call, Cancel

A Call carries an id, a verb, its arguments and how long the caller will wait. The agent answers with exactly one
Reply: `result`, or `error` as errors.NovaCronError.as_data(). Verbs are idempotent; a call repeated after a broken
line finds its work done. Frames are tagged by `t`; unknown fields are ignored (N/N-1), unknown tags are refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.errors import Reason
from novacron.model.blocks import Sample
from novacron.model.machine import MachineReport, MachineSpec, StopMode
from novacron.model.migration import Goals, Progress, Tactics
from novacron.model.network import Flow
from novacron.model.node import NodeFacts, NodeUsage
from novacron.model.pool import PoolSpec
from novacron.wire import belongings, link, network, snapshot, storage
from novacron.wire.verb import MachineVerb

PATH = "/agent/v1/line"
PROTOCOL = 1
MAX_FRAME_BYTES = 4 << 20
REPORT_INTERVAL_S = 2.0


# -- frames ------------------------------------------------------------------------------------------------


class KeptCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a machine's disks with a migration that failed is on the node, under that generation."""

    vm_id: str
    generation: int
    migration_id: str


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="hello"):
    """First frame of an agent. node_id is the agent's own, made once and kept in its state directory.

    networks: ids of the overlay networks it has something of. copies: what it keeps of copies that came in part.
    """

    protocol: int
    node_id: str
    node_name: str
    facts: NodeFacts
    machines: tuple[MachineReport, ...]
    networks: tuple[str, ...] = ()
    copies: tuple[KeptCopy, ...] = ()


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="welcome"):
    protocol: int
    server_version: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="report"):
    """A heartbeat. `machines`: all of them when `complete`, else only those that changed. copies: when complete."""

    seq: int
    complete: bool
    machines: tuple[MachineReport, ...]
    usage: NodeUsage
    copies: tuple[KeptCopy, ...] = ()


class MigrationProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="progress"):
    migration_id: str
    progress: Progress


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="call"):
    id: int
    verb: str
    args: msgspec.Raw
    deadline_ms: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """The caller no longer waits for call `id`; the agent cancels its task. No Reply is owed."""

    id: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="reply", omit_defaults=True):
    id: int
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


FromAgent = Hello | Report | MigrationProgress | Reply
FromServer = Welcome | Call | Cancel


# -- verbs: the struct is the arguments, `verb` its name, `answers` the type of its result --------------------


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Provision what is missing and boot. → MachineReport"""

    spec: MachineSpec


class Stop(MachineVerb, frozen=True, kw_only=True):
    """→ MachineReport"""

    mode: StopMode = StopMode.GRACEFUL
    deadline_s: float = 60.0


class Pause(MachineVerb, frozen=True, kw_only=True):
    """→ MachineReport"""


class Resume(MachineVerb, frozen=True, kw_only=True):
    """→ MachineReport"""


class Remove(MachineVerb, frozen=True, kw_only=True):
    """Delete the machine and, if `volumes`, its volumes. It must not run. → None"""

    volumes: tuple[str, ...] = ()


class Park(MachineVerb, frozen=True, kw_only=True):
    """Keep its memory and its devices' state for copies, and end it. → MachineReport"""


class Adjust(msgspec.Struct, frozen=True, kw_only=True):
    """Make the running machine as the spec says: plug and unplug disks, cards, media, vCPUs, memory; sizes; limits.

    Idempotent: what already is so is left alone. → Adjusted
    """

    spec: MachineSpec


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """now: the spec as the machine runs with it from here on; pending: one reason for each wish that waits for the
    next start.
    """

    report: MachineReport
    now: MachineSpec
    pending: tuple[Reason, ...] = ()


class Console(MachineVerb, frozen=True, kw_only=True):
    """The last bytes of the serial log. → ConsoleText"""

    max_bytes: int = 65536


class ConsoleText(msgspec.Struct, frozen=True, kw_only=True):
    """Latin-1-decoded serial output; truncated: older bytes exist or were dropped."""

    text: str
    truncated: bool


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
    """(target) Continue under `generation`, which the committed record holds. → Arrived"""

    migration_id: str
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
    """(source) → MachineReport"""

    migration_id: str


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
    "machine.start": Start,
    "machine.stop": Stop,
    "machine.pause": Pause,
    "machine.resume": Resume,
    "machine.remove": Remove,
    "machine.console": Console,
    "machine.adjust": Adjust,
    "machine.park": Park,
    "migration.accept": Accept,
    "migration.copy_disks": CopyDisks,
    "migration.copy_here": CopyHere,
    "migration.pivot": Pivot,
    "migration.tidy": Tidy,
    "rehearsal.copy_out": CopyOut,
    "rehearsal.drop_copy": DropCopy,
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
    **belongings.VERBS,
    **storage.VERBS,
    **network.VERBS,
    **link.VERBS,
    **snapshot.VERBS,
}
NAME_OF: dict[type[msgspec.Struct], str] = {struct: name for name, struct in VERBS.items()}
