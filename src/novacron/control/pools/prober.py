"""Asks every node whether it reaches every pool: when a pool is made, when a node comes, and once a minute."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.pools.reach import spec_for
from novacron.control.store.kinds import NODES, POOLS
from novacron.control.store.records import Records, Seen
from novacron.errors import DeadlineExceeded, NodeUnreachable, NotFound, NovaCronError
from novacron.model.node import NodeState
from novacron.model.pool import Pool, PoolSpec, Reach, spec_of
from novacron.wire.agent import Hello
from novacron.wire.storage import PoolFound, PoolProbe

ROUND_S = 60.0
PROBE_DEADLINE_S = 15.0  # agents answer within 10 that a file server does not
AT_ONCE = 16
MATERIAL = 0.01
"""The share of a pool by which its free space must have changed to be written down."""


def is_news(old: Reach | None, new: Reach) -> bool:
    """Whether what a node found differs enough from what is recorded to be worth a write."""
    if old is None or (old.available, old.reason, old.size_bytes) != (new.available, new.reason, new.size_bytes):
        return True
    return abs(new.free_bytes - old.free_bytes) > MATERIAL * (new.size_bytes or old.free_bytes)


class Prober:
    """`run` until cancelled. A node that does not answer is not judged: its state says that already."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._due: set[tuple[str, str]] = set()  # (pool id, node id)
        self._news: dict[str, dict[str, tuple[PoolSpec, Reach]]] = {}  # by pool and node id, not yet written
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by pool id
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("prober")

    def hello(self, hello: Hello) -> None:
        """A node has come (back): it is asked for every pool."""
        self._add((stored.record.id, hello.node_id) for stored in self._records.all(POOLS))

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        rounds = asyncio.create_task(self._rounds(), name="prober-rounds")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                due, self._due = self._due, set()
                await self._probe_all(sorted(due))
        finally:
            stop()
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)

    async def _rounds(self) -> None:
        while True:
            for stored in self._records.all(POOLS):
                self._ask_everybody(stored.record.id)
            await self._clock.sleep(ROUND_S)

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is POOLS and change.now is not None and _is_elsewhere(change.before, change.now):
                self._ask_everybody(change.now.id)

    def _ask_everybody(self, pool_id: str) -> None:
        self._add((pool_id, stored.record.id) for stored in self._records.all(NODES))

    def _add(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._due.update(pairs)
        self._wake.set()

    async def _probe_all(self, due: Sequence[tuple[str, str]]) -> None:
        """At most AT_ONCE at a time; one that fails hinders no other."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(pool_id: str, node_id: str) -> None:
            async with slots:
                try:
                    await self._probe(pool_id, node_id)
                except NovaCronError as error:
                    self._log.warning("what a node found was not written", pool_id=pool_id, why=error.message)

        async with asyncio.TaskGroup() as group:
            for pair in due:
                group.create_task(one(*pair))

    async def _probe(self, pool_id: str, node_id: str) -> None:
        pool, node = self._records.get(POOLS, pool_id), self._records.get(NODES, node_id)
        if pool is None or node is None or node.record.state is not NodeState.UP:
            return
        found = await self._found(pool.record, node_id)
        if found is None or not is_news(pool.record.reach.get(node_id), found):
            return
        if not found.available:
            self._log.warning("a pool is out of reach", pool=pool.record.name, node=node.record.name, why=found.reason)
        self._news.setdefault(pool_id, {})[node_id] = (spec_of(pool.record), found)
        await self._write(pool_id)

    async def _write(self, pool_id: str) -> None:
        """What came while the pool was being written goes together into its next record: it is as long as the nodes
        are many.
        """
        async with self._turns[pool_id]:
            news = self._news.pop(pool_id, None)
            if news is None:  # written with somebody else's
                return
            try:
                await self._records.change(POOLS, pool_id, lambda now: self._with(now, news))
            except NotFound:
                self._log.info("a pool was deleted while it was looked for", pool_id=pool_id)

    async def _found(self, pool: Pool, node_id: str) -> Reach | None:
        now = self._clock.wall()
        try:
            probe = PoolProbe(pool=spec_for(self._records, pool))
            found = await self._agents.call(node_id, probe, PoolFound, deadline_s=PROBE_DEADLINE_S)
        except NodeUnreachable:
            return None
        except DeadlineExceeded:
            return Reach(available=False, reason=f"it did not answer within {PROBE_DEADLINE_S:.0f} s", checked_at=now)
        except NovaCronError as error:
            return Reach(available=False, reason=error.message, checked_at=now)
        return Reach(
            available=found.available,
            reason=found.reason,
            free_bytes=found.free_bytes,
            size_bytes=found.size_bytes,
            checked_at=now,
        )

    def _with(self, pool: Pool, news: Mapping[str, tuple[PoolSpec, Reach]]) -> Pool | None:
        """Nodes that were forgotten are left out, and what was found where the pool lies no more."""
        found = {node_id: reach for node_id, (spec, reach) in news.items() if spec == spec_of(pool)}
        if not found:
            return None
        known = {key: reach for key, reach in pool.reach.items() if self._records.get(NODES, key) is not None}
        return msgspec.structs.replace(pool, reach=known | found)


def _is_elsewhere(before: Pool | None, now: Pool) -> bool:
    return before is None or spec_of(before) != spec_of(now)
