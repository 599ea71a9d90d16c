"""What a scenario file says: nodes, groups of VMs, and what happens when. Plain data; `reading` checks it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from novacron.model.identity import LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, NAME_PATTERN

MAX_NODES = 500
MAX_VMS = 5000
MAX_SERVERS = 7
MAX_EVENTS = 1000
MAX_S = 30 * 86_400.0

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Labels = dict[Annotated[str, Meta(pattern=LABEL_KEY_PATTERN)], Annotated[str, Meta(pattern=LABEL_VALUE_PATTERN)]]
Seconds = Annotated[float, Meta(ge=0, le=MAX_S)]
Span = Annotated[float, Meta(gt=0, le=MAX_S)]
Names = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_VMS)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: what it does not know it refuses."""


class NodeGroup(Table, frozen=True, kw_only=True):
    """Nodes that are alike: `<name>-1` and so on; one alone is called by the name. zone: their label `zone`."""

    name: Name
    count: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 1
    cpus: Annotated[int, Meta(ge=1, le=4096)] = 16
    memory_mib: Annotated[int, Meta(ge=1024, le=1 << 26)] = 65536
    zone: str = ""
    labels: Labels = {}
    fence_class: Literal["none", "agent", "timer", "watchdog", "bmc"] = "timer"

    def names(self) -> tuple[str, ...]:
        """Of its nodes."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}-{at}" for at in range(1, self.count + 1))


class VmGroup(Table, frozen=True, kw_only=True):
    """VMs that are alike: `<name>-1` and so on. count: that are there from the start.

    ha, placement: as the API has them (docs/high-availability.md, docs/placement.md). dirty_mib_per_s: how fast their
    guests dirty memory as they move.
    """

    name: Name
    count: Annotated[int, Meta(ge=0, le=MAX_VMS)] = 0
    vcpus: int = 1
    memory_mib: int = 1024
    labels: Labels = {}
    ha: dict[str, Any] = {}
    placement: dict[str, Any] = {}
    dirty_mib_per_s: Annotated[float, Meta(ge=0)] = 0.0


class Event(Table, frozen=True, kw_only=True, tag_field="do"):
    """Something that happens, so many seconds after the start."""

    at_s: Seconds


class PowerLoss(Event, frozen=True, kw_only=True, tag="power_loss"):
    """Nodes lose their power; it comes back after for_s, or never."""

    nodes: Names
    for_s: Span | None = None


class Partition(Event, frozen=True, kw_only=True, tag="partition"):
    """Nodes reach no server and no other node for that long; what runs on them runs on."""

    nodes: Names
    for_s: Span


class ServerCrash(Event, frozen=True, kw_only=True, tag="server_crash"):
    """A server is killed, and started again after for_s, or never. Servers are called server-1 and so on."""

    server: Name = "server-1"
    for_s: Span | None = None


class Drain(Event, frozen=True, kw_only=True, tag="drain"):
    """Nodes are emptied one after the other. maintenance_s: each is then worked on for that long, and brought back
    before the next; left out: they stay empty. max_concurrent: moves at once.
    """

    nodes: Names
    maintenance_s: Seconds | None = None
    max_concurrent: Annotated[int, Meta(ge=1, le=256)] = 5


class Create(Event, frozen=True, kw_only=True, tag="create"):
    """So many VMs more of a group."""

    group: Name
    count: Annotated[int, Meta(ge=1, le=MAX_VMS)] = 1


class Arrivals(Event, frozen=True, kw_only=True, tag="arrivals"):
    """VMs of a group come by chance, so many a minute on average, for so long. lifetime_s: how long each stays on
    average before it is deleted; left out: for good.
    """

    group: Name
    per_minute: Annotated[float, Meta(gt=0, le=6000)]
    for_s: Span
    lifetime_s: Span | None = None


class Start(Event, frozen=True, kw_only=True, tag="start"):
    vms: Names


class Stop(Event, frozen=True, kw_only=True, tag="stop"):
    vms: Names


class Migrate(Event, frozen=True, kw_only=True, tag="migrate"):
    """Each VM is moved; to: where, else the scheduler chooses."""

    vms: Names
    to: Name | None = None


AnyEvent = PowerLoss | Partition | ServerCrash | Drain | Create | Arrivals | Start | Stop | Migrate
EVENTS = (PowerLoss, Partition, ServerCrash, Drain, Create, Arrivals, Start, Stop, Migrate)


class Scenario(Table, frozen=True, kw_only=True):
    """The whole file. link_mib_per_s: of each node's network, shared by the streams over it."""

    name: Name
    duration_s: Span
    nodes: Annotated[tuple[NodeGroup, ...], Meta(min_length=1, max_length=MAX_NODES)]
    seed: int = 1
    servers: Annotated[int, Meta(ge=1, le=MAX_SERVERS)] = 1
    link_mib_per_s: Annotated[float, Meta(gt=0, le=1 << 20)] = 1100.0
    vms: Annotated[tuple[VmGroup, ...], Meta(max_length=MAX_VMS)] = ()
    events: Annotated[tuple[AnyEvent, ...], Meta(max_length=MAX_EVENTS)] = ()

    def node_names(self) -> tuple[str, ...]:
        """Of all nodes."""
        return tuple(name for group in self.nodes for name in group.names())

    def server_names(self) -> tuple[str, ...]:
        """Of all servers."""
        return tuple(f"server-{at}" for at in range(1, self.servers + 1))

    def nodes_of(self, refs: tuple[str, ...]) -> tuple[str, ...]:
        """Names of nodes; the name of a group means all of it."""
        groups = {group.name: group.names() for group in self.nodes}
        return tuple(dict.fromkeys(name for ref in refs for name in groups.get(ref, (ref,))))
