"""How much of each node is used, what a VM's move changes in that, and how uneven the whole is. Pure.

Memory is counted as it is promised. CPU is counted as nodes report it, once that is known of every node that takes VMs;
else as it is promised. A node reports one figure: it is laid on its VMs by their virtual CPUs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from novacron.control.balancer.scene import Post, Scene, Seat


class Used(msgspec.Struct, frozen=True):
    """Shares of what a node has; more than 1 where it has too little."""

    memory: float
    cpu: float

    @property
    def strain(self) -> float:
        """Of what is scarcest."""
        return max(self.memory, self.cpu)


class Relief(msgspec.Struct, frozen=True):
    """What a move changes. gap: how far apart its nodes are before it. gain: by how much the more strained of the two
    is less so after it. carried: the VM's own share of its target.
    """

    gap: float
    gain: float
    carried: float


class Uses:
    """As things stand after every `move`."""

    def __init__(self, scene: Scene) -> None:
        posts = [post for post in scene.posts if post.node.facts is not None]
        self._open = [post.node.id for post in posts if post.is_open]
        known = [post for post in posts if post.is_open]
        self.by_load = bool(known) and all(post.load is not None for post in known)
        self._memory_of = {one.node.id: _whole(one.node.facts.memory_mib, scene) for one in posts if one.node.facts}
        self._cpus_of = {post.node.id: self._cpus(post, scene) for post in posts}
        self._memory = {post.node.id: float(post.promised_memory_mib) for post in posts}
        self._cpu = {post.node.id: self._busy(post) for post in posts}
        self._load = {post.node.id: post.load or 0.0 for post in posts}
        self._vcpus: Counter[str] = Counter()
        for seat in scene.seats:
            self._vcpus[seat.node_id] += seat.vcpus

    def _cpus(self, post: Post, scene: Scene) -> float:
        count = post.node.facts.cpu_count if post.node.facts else 0
        return max(1.0, count if self.by_load else count * scene.limits.cpu_overcommit)

    def _busy(self, post: Post) -> float:
        return (post.load or 0.0) if self.by_load else float(post.promised_vcpus)

    def of(self, node_id: str) -> Used:
        """:raise KeyError: it has not reported what it has."""
        return Used(self._memory[node_id] / self._memory_of[node_id], self._cpu[node_id] / self._cpus_of[node_id])

    def open_nodes(self) -> list[str]:
        """Those that take VMs, the most strained first; of equal ones as they came."""
        return sorted(self._open, key=lambda node_id: -self.of(node_id).strain)

    def cpu_of(self, seat: Seat) -> float:
        """What of its node's busy CPUs is laid on the VM: where it was when the scene was made."""
        if not self.by_load:
            return float(seat.vcpus)
        whole = self._vcpus[seat.node_id]
        return min(float(seat.vcpus), self._load.get(seat.node_id, 0.0) * seat.vcpus / whole) if whole else 0.0

    def relief(self, seat: Seat, target_id: str) -> Relief:
        """What the move would change."""
        source, target, cpu = self.of(seat.node_id), self.of(target_id), self.cpu_of(seat)
        left = self._changed(seat.node_id, -seat.memory_mib, -cpu)
        loaded = self._changed(target_id, seat.memory_mib, cpu)
        before, after = max(source.strain, target.strain), max(left.strain, loaded.strain)
        carried = max(loaded.memory - target.memory, loaded.cpu - target.cpu)
        return Relief(gap=source.strain - target.strain, gain=before - after, carried=carried)

    def _changed(self, node_id: str, memory_mib: float, cpu: float) -> Used:
        memory = (self._memory[node_id] + memory_mib) / self._memory_of[node_id]
        return Used(memory, max(0.0, self._cpu[node_id] + cpu) / self._cpus_of[node_id])

    def move(self, seat: Seat, target_id: str) -> None:
        """The VM is there now."""
        cpu = self.cpu_of(seat)
        for node_id, sign in ((seat.node_id, -1), (target_id, 1)):
            if node_id in self._memory:
                self._memory[node_id] += sign * seat.memory_mib
                self._cpu[node_id] = max(0.0, self._cpu[node_id] + sign * cpu)

    def imbalance(self, moved: tuple[Seat, str] | None = None) -> float:
        """How far nodes that take VMs are from being used alike, in memory and CPU: 0 when they are.

        moved: as it would be after that move.
        """
        used = {node_id: self.of(node_id) for node_id in self._open}
        if moved is not None:
            seat, target_id = moved
            cpu = self.cpu_of(seat)
            for node_id, sign in ((seat.node_id, -1), (target_id, 1)):
                if node_id in used:
                    used[node_id] = self._changed(node_id, sign * seat.memory_mib, sign * cpu)
        memory = _variance((self._memory_of[key], one.memory) for key, one in used.items())
        cpu_part = _variance((self._cpus_of[key], one.cpu) for key, one in used.items())
        return math.sqrt(memory + cpu_part)


def _whole(memory_mib: int, scene: Scene) -> int:
    return max(1, memory_mib - scene.limits.memory_reserve_mib)


def _variance(weighted: Iterable[tuple[float, float]]) -> float:
    """Of shares, each as heavy as what it is a share of: so a large node does not count as little as a small one."""
    pairs = list(weighted)
    whole = sum(weight for weight, _ in pairs)
    if not whole:
        return 0.0
    mean = sum(weight * share for weight, share in pairs) / whole
    return sum(weight * (share - mean) ** 2 for weight, share in pairs) / whole
