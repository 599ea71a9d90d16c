"""What the balancer decides from: nodes, VMs and their figures at one moment. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.snapshot import Limits, Need
from novacron.errors import Reason
from novacron.model.balancer import Settings
from novacron.model.node import Node, NodeState


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A node. promised_…: what VMs hold of it. load: CPUs that are busy, smoothed; None: not known (yet).

    rests: why it takes part in no move for load now.
    """

    node: Node
    promised_memory_mib: int = 0
    promised_vcpus: int = 0
    load: float | None = None
    rests: Reason | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes VMs."""
        return self.node.state is NodeState.UP and not self.node.cordoned and self.node.facts is not None


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A VM and the node that owns it. need: of another node. memory_mib, vcpus: what it holds where it is.

    held: why it is not moved now. for_load: also moved for load; a VM that is to be packed is not.
    """

    vm_id: str
    vm_name: str
    node_id: str
    need: Need
    memory_mib: int
    vcpus: int
    held: Reason | None = None
    for_load: bool = True


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a move is expected to cost. stream_bytes: memory; disk_bytes: of disks that are copied."""

    kind: str
    total_s: float
    downtime_s: float
    stream_bytes: int = 0
    disk_bytes: int = 0


Pricing = Callable[[str, str], Price | tuple[Reason, ...]]
"""By VM id and node id: what the move costs, or why it cannot be made."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """seats: every VM that is on a node. under_way: moves of the balancer's own. draft: a new one of this moment."""

    settings: Settings
    limits: Limits
    posts: Sequence[Post]
    seats: Sequence[Seat]
    draft: Callable[[], Draft]
    under_way: int = 0
