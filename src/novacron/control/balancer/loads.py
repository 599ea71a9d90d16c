"""What nodes say of their load, smoothed: taken down on every server, so that each can say what a balancer would do."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from novacron.clock import Clock
from novacron.control.store.kinds import BALANCER, NODES
from novacron.control.store.records import Records
from novacron.model import balancer as model
from novacron.model.node import NodeUsage

SAMPLE_S = 10.0
STALE_S = 30.0
"""A node that has said nothing for so long has no load that is known; what it says next begins anew."""


class Meters(Protocol):
    """What the line to each agent last brought; `Link` is one."""

    def usage(self, node_id: str) -> NodeUsage | None:
        """As of the last heartbeat; None: none came since this server started."""
        ...

    def heard_ago_s(self, node_id: str) -> float | None:
        """Seconds since the node's last frame; None: it has no line."""
        ...


class Smoothed(msgspec.Struct, frozen=True):
    """A load over a while. Each sample counts less the older it is: a window ago, about a third.

    Of the first samples each counts the same: else the very first would count most for a whole window.
    """

    value: float
    since_s: float
    at_s: float
    samples: int = 1

    def then(self, load: float, at_s: float, window_s: float) -> Smoothed:
        """With one more sample."""
        part = 1 - math.exp(-max(0.0, at_s - self.at_s) / max(window_s, 1e-9))
        part = max(part, 1 / (self.samples + 1))
        return Smoothed(self.value + part * (load - self.value), self.since_s, at_s, self.samples + 1)

    def settled(self, window_s: float) -> bool:
        """Whether it has been looked at for long enough to count."""
        return self.at_s - self.since_s >= window_s


class Loads:
    """`run` takes samples until cancelled; `load` answers."""

    def __init__(self, meters: Meters, records: Records, clock: Clock) -> None:
        self._meters = meters
        self._records = records
        self._clock = clock
        self._known: dict[str, Smoothed] = {}

    async def run(self) -> None:
        while True:
            self.sample()
            await self._clock.sleep(SAMPLE_S)

    def sample(self) -> None:
        """Take down what every node says now."""
        now_s, window_s = self._clock.monotonic_s(), settings_of(self._records).window_s
        fresh: dict[str, Smoothed] = {}
        for stored in self._records.all(NODES):
            node_id = stored.record.id
            usage, heard_ago_s = self._meters.usage(node_id), self._meters.heard_ago_s(node_id)
            if usage is None or heard_ago_s is None or heard_ago_s > STALE_S:
                continue
            before = self._known.get(node_id)
            first = Smoothed(usage.load_1m, now_s, now_s)
            fresh[node_id] = before.then(usage.load_1m, now_s, window_s) if before else first
        self._known = fresh

    def load(self, node_id: str) -> float | None:
        """CPUs that are busy there, smoothed; None: it is not known, or not for long enough."""
        known = self._known.get(node_id)
        return known.value if known and known.settled(settings_of(self._records).window_s) else None


def settings_of(records: Records) -> model.Settings:
    """As they are now; the usual ones before anybody has set them."""
    stored = records.get(BALANCER, model.BALANCER)
    return stored.record if stored else model.Settings()
