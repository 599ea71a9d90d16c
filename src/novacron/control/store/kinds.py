"""The kinds of records there are: where each lies in the store, how it is read, whether its names are unique."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from novacron.errors import Reason, StoreCorrupt
from novacron.model.balancer import Settings as BalancerSettings
from novacron.model.bulk_migration import BulkMigration
from novacron.model.event import ObjectType
from novacron.model.fence_device import FenceDevice
from novacron.model.ha import FenceLog
from novacron.model.image import Image
from novacron.model.link import LinkFigure
from novacron.model.membership import Membership
from novacron.model.migration import Migration
from novacron.model.network import Network, SecurityGroup
from novacron.model.node import Node
from novacron.model.policy import Policy
from novacron.model.pool import Pool
from novacron.model.rehearsal import Rehearsal
from novacron.model.snapshot import Schedule, Snapshot
from novacron.model.template import Template
from novacron.model.vm import Vm, cards_of
from novacron.model.volume import Volume


class Record(Protocol):
    """What every kind of record has."""

    @property
    def id(self) -> str: ...


class OfVm(Record, Protocol):
    """What a kind has whose records are about one VM each, or belong to one; an empty vm_id: to none."""

    @property
    def vm_id(self) -> str: ...


class OnNode(Record, Protocol):
    """What a kind has whose records are on one node each; an empty node_id: on none."""

    @property
    def node_id(self) -> str: ...


R = TypeVar("R", bound=Record)
V = TypeVar("V", bound=OfVm)
N = TypeVar("N", bound=OnNode)


_NO_LABELS: dict[str, str] = {}
_NO_MARKS: frozenset[str] = frozenset()


def name_of(record: Any) -> str:
    return str(record.name)


class Kind(Generic[R]):
    """One kind of record: where it lies, how it is read, whether its names are unique.

    aliases: by what else a record is found; whoever writes them keeps each on one record.
    marks: by what several may be found.
    """

    def __init__(
        self,
        prefix: str,
        type_: type[R],
        object_type: ObjectType,
        *,
        named: bool,
        aliases: Callable[[R], tuple[str, ...]] | None = None,
        marks: Callable[[R], frozenset[str]] | None = None,
    ) -> None:
        self.prefix = prefix
        self.object_type = object_type
        self.named = named
        self._aliases = aliases
        self._marks = marks
        self._decoder = msgspec.json.Decoder(type_)

    def key(self, record_id: str) -> str:
        return f"{self.prefix}{record_id}"

    def name_key(self, name: str) -> str:
        return f"names/{self.object_type.value}/{name}"

    def called(self, record: R) -> tuple[str, ...]:
        """Everything but its id by which a record is found."""
        aliases = self._aliases(record) if self._aliases else ()
        return (name_of(record), *aliases) if self.named else aliases

    def vm_of(self, record: R) -> str:
        """The id of the VM that the record is about, or that it belongs to; empty: of none."""
        return str(getattr(record, "vm_id", ""))

    def node_of(self, record: R) -> str:
        """The id of the node that the record is on; empty: on none."""
        return str(getattr(record, "node_id", ""))

    def is_busy(self, record: R) -> bool:
        """Whether a task of it is under way; never of a kind whose records have none."""
        return getattr(record, "task", None) is not None

    def labels_of(self, record: R) -> dict[str, str]:
        """Its labels; none of a kind that has none. To be read."""
        labels: dict[str, str] = getattr(record, "labels", _NO_LABELS)
        return labels

    def marks_of(self, record: R) -> frozenset[str]:
        """By what several records may be found."""
        return self._marks(record) if self._marks else _NO_MARKS

    def decode(self, key: str, value: bytes) -> R:
        """:raise StoreCorrupt: the record cannot be read by this program."""
        try:
            return self._decoder.decode(value)
        except msgspec.DecodeError as wrong:
            said = f"record {key} cannot be read: {wrong}"
            remedy = "if a newer version wrote it, run that one here; else restore a backup (docs/upgrading.md)"
            raise StoreCorrupt(said, [Reason("record.unreadable", said, subject=key, remedy=remedy)]) from wrong


def _cards(vm: Vm) -> frozenset[str]:
    """The networks and security groups its cards are in, and the MAC addresses of those it is to have."""
    overlay = cards_of(vm)
    marks = [nic.mac for nic in vm.spec.nics]
    marks += [nic.network_id for nic in overlay]
    marks += [group_id for nic in overlay for group_id in nic.security_groups]
    return frozenset(marks)


VMS: Kind[Vm] = Kind("vms/", Vm, ObjectType.VM, named=True, marks=_cards)
NODES: Kind[Node] = Kind("nodes/", Node, ObjectType.NODE, named=True)
IMAGES: Kind[Image] = Kind("images/", Image, ObjectType.IMAGE, named=True, aliases=lambda image: image.tags)
MIGRATIONS: Kind[Migration] = Kind("migrations/", Migration, ObjectType.MIGRATION, named=False)
POOLS: Kind[Pool] = Kind("pools/", Pool, ObjectType.POOL, named=True)
VOLUMES: Kind[Volume] = Kind("volumes/", Volume, ObjectType.VOLUME, named=True)
NETWORKS: Kind[Network] = Kind("networks/", Network, ObjectType.NETWORK, named=True)
SECURITY_GROUPS: Kind[SecurityGroup] = Kind("security_groups/", SecurityGroup, ObjectType.SECURITY_GROUP, named=True)
SNAPSHOTS: Kind[Snapshot] = Kind("snapshots/", Snapshot, ObjectType.SNAPSHOT, named=False)
SCHEDULES: Kind[Schedule] = Kind("schedules/", Schedule, ObjectType.SCHEDULE, named=True)
TEMPLATES: Kind[Template] = Kind("templates/", Template, ObjectType.TEMPLATE, named=True)
POLICIES: Kind[Policy] = Kind("migration_policies/", Policy, ObjectType.MIGRATION_POLICY, named=True)
BULK_MIGRATIONS: Kind[BulkMigration] = Kind("bulk_migrations/", BulkMigration, ObjectType.BULK_MIGRATION, named=False)
REHEARSALS: Kind[Rehearsal] = Kind("migration_rehearsals/", Rehearsal, ObjectType.MIGRATION_REHEARSAL, named=False)
LINKS: Kind[LinkFigure] = Kind("links/", LinkFigure, ObjectType.LINK, named=False)
BALANCER: Kind[BalancerSettings] = Kind("balancer/", BalancerSettings, ObjectType.BALANCER, named=False)  # one record
# The next three are for servers alone: no event tells of them (control.stream has no view of theirs).
MEMBERS: Kind[Membership] = Kind("members/", Membership, ObjectType.NODE, named=False)
FENCES: Kind[FenceLog] = Kind("fences/", FenceLog, ObjectType.NODE, named=False)
FENCE_DEVICES: Kind[FenceDevice] = Kind("fence_devices/", FenceDevice, ObjectType.NODE, named=False)
KINDS: tuple[Kind[Any], ...] = (
    VMS, NODES, IMAGES, MIGRATIONS, POOLS, VOLUMES, NETWORKS, SECURITY_GROUPS, SNAPSHOTS, SCHEDULES, TEMPLATES,
    POLICIES, BULK_MIGRATIONS, REHEARSALS, LINKS, BALANCER, MEMBERS, FENCES, FENCE_DEVICES,
)  # fmt: skip
