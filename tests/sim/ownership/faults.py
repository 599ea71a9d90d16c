"""Faults as data: a plan is a list of them, drawn from a seed or by Hypothesis, which makes a failing one small."""

from __future__ import annotations

import dataclasses
import random

KINDS = (
    "agent", "pause", "power", "leave", "freeze", "guardian", "stuck", "cut", "cut", "half", "pair", "deaf", "mute",
    "store", "server", "still", "upgrade", "relist", "migrate", "migrate", "migrate", "cancel", "shelve",
)  # fmt: skip
"""agent: it dies, comes back. pause: it stands still (SIGSTOP). power: the host loses it. leave: the host is shut
down in order. freeze: the host stands still. guardian: it stands still. stuck: hypervisors cannot die. cut: a node from
some others, both ways; half: one way only. pair: two from each other. deaf: a node does not hear one server; mute: nor
is it heard by one. store: an outage. server: it dies; still: it stands still. upgrade: an agent is away for long,
announced. relist: it asks other servers for time. migrate, cancel: of a VM. shelve: a VM is shut down, moved at rest,
started.
"""
LOCAL, UNPROTECTED = "v2", "v3"
"""VMs: one with a disk that lies on one node alone; one without HA."""
LENGTHS_S = (0.5, 2.0, 6.0, 12.0, 16.0, 22.0, 30.0)

AT_ONCE = 0.35


@dataclasses.dataclass(frozen=True)
class Fault:
    """node, vm, and salt are taken modulo what there is."""

    at_s: float
    kind: str
    node: int
    vm: int
    length_s: float
    salt: int

    def __str__(self) -> str:
        return (
            f"{self.at_s:6.1f} s {self.kind} node {self.node} vm {self.vm} for {self.length_s:.1f} s, salt {self.salt}"
        )


def drawn(rng: random.Random, until_s: float, every_s: float) -> list[Fault]:
    """A plan: faults at random moments, one in `every_s` on average, some soon followed by another at that node."""
    found: list[Fault] = []
    at_s, node = 8.0, 0
    while True:
        at_once = bool(found) and rng.random() < AT_ONCE
        at_s += rng.uniform(0.5, 6.0) if at_once else rng.expovariate(1 / every_s)
        node = node if at_once else rng.randrange(16)
        if at_s >= until_s:
            return found
        found.append(
            Fault(
                at_s=at_s,
                kind=rng.choice(KINDS),
                node=node,
                vm=rng.randrange(16),
                length_s=rng.choice(LENGTHS_S) * rng.uniform(0.8, 1.2),
                salt=rng.randrange(1 << 16),
            )
        )
