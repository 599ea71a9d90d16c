"""The line between server and agent: one WebSocket that the agent dials; JSON frames; many calls at once.

    agent → server   Hello, then Report (every 2 s and at each change), MigrationProgress, Reply; wire.membership's
    server → agent   Welcome, then Call, Cancel; wire.membership's answers

A Call carries an id, a verb, its arguments and how long the caller will wait. The agent answers with exactly one
Reply: `result`, or `error` as errors.NovaCronError.as_data(). Verbs are idempotent; a call repeated after a broken
line finds its work done. Frames are tagged by `t`; unknown fields are ignored (N/N-1), unknown tags are refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.errors import Reason
from novacron.model.machine import MachineReport, MachineSpec, StopMode
from novacron.model.migration import Progress
from novacron.model.node import NodeFacts, NodeUsage
from novacron.wire import belongings, link, membership, moving, network, snapshot, storage
from novacron.wire.membership import Beat, Join, Leave, Plea, Standing, Terms
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
    takes_part: whether it heartbeats where a Welcome names terms.
    """

    protocol: int
    node_id: str
    node_name: str
    facts: NodeFacts
    machines: tuple[MachineReport, ...]
    networks: tuple[str, ...] = ()
    copies: tuple[KeptCopy, ...] = ()
    takes_part: bool = False


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="welcome"):
    """terms: of the node's membership; None: this server writes no heartbeats."""

    protocol: int
    server_version: str
    terms: Terms | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="report"):
    """A heartbeat. `machines`: all of them when `complete`, else only those that changed.

    copies, networks: as in Hello, when complete; networks None: not told.
    """

    seq: int
    complete: bool
    machines: tuple[MachineReport, ...]
    usage: NodeUsage
    copies: tuple[KeptCopy, ...] = ()
    networks: tuple[str, ...] | None = None


class MigrationProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="progress"):
    migration_id: str
    progress: Progress


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="call", omit_defaults=True):
    """term: the store's revision at which the time of the leader that asks began, which grows with each leader, over
    restored stores too; an agent that has heard of a newer one refuses. 0: a request of a person.
    """

    id: int
    verb: str
    args: msgspec.Raw
    deadline_ms: int
    term: int = 0


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """The caller no longer waits for call `id`; the agent cancels its task. No Reply is owed."""

    id: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="reply", omit_defaults=True):
    id: int
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


FromAgent = Hello | Report | MigrationProgress | Reply | Beat | Join | Plea | Leave
FromServer = Welcome | Call | Cancel | Standing


# -- verbs: the struct is the arguments, `verb` its name, `answers` the type of its result --------------------


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Provision what is missing and boot. → MachineReport

    epoch: of the node's membership, for which the order speaks; 0: the node takes no part. over: the last migration of
    the machine that has ended: what it left here may be started.
    """

    spec: MachineSpec
    epoch: int = 0
    over: str = ""


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


VERBS: dict[str, type[msgspec.Struct]] = {
    "machine.start": Start,
    "machine.stop": Stop,
    "machine.pause": Pause,
    "machine.resume": Resume,
    "machine.remove": Remove,
    "machine.console": Console,
    "machine.adjust": Adjust,
    "machine.park": Park,
    **moving.VERBS,
    **belongings.VERBS,
    **storage.VERBS,
    **network.VERBS,
    **link.VERBS,
    **membership.VERBS,
    **snapshot.VERBS,
}
NAME_OF: dict[type[msgspec.Struct], str] = {struct: name for name, struct in VERBS.items()}
