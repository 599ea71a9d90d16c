"""Keeps every node told of the networks it has cards on, or is about to have: whole states, the newest counts.

It watches the records, works out anew the states of the networks that a change touches, and sends each node whose
state differs from what it was last told: at once and to all nodes side by side, for a machine that has just moved is
not found until they know. What cannot be told is tried again; a node whose line opens is told everything.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.link import Agents
from novacron.control.networks.states import snapshot, stamped, states
from novacron.control.networks.touched import touched
from novacron.control.store.kinds import NETWORKS
from novacron.control.store.records import Records, Seen
from novacron.errors import NovaCronError
from novacron.model.network import NetworkState
from novacron.wire.agent import Hello
from novacron.wire.network import NetworkApply, NetworkForget

DEADLINE_S = 10.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 30.0

Pair = tuple[str, str]
"""Node id, network id."""


class _Wanted(msgspec.Struct, frozen=True):
    """The states of one network by node id, and the store revision they were worked out at."""

    states: Mapping[str, NetworkState]
    revision: int


_NOTHING = _Wanted({}, 0)


class Weaver:
    """`run` until cancelled. Holds only what may be lost: what each node was told since its line opened."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._wanted: dict[str, _Wanted] = {}
        self._told: dict[Pair, NetworkState | None] = {}  # None: it has something of it, who knows what
        self._telling: dict[Pair, asyncio.Task[None]] = {}
        self._resting: set[asyncio.Task[None]] = set()  # those that wait for their next try
        self._lines: defaultdict[str, int] = defaultdict(int)  # node id -> how often its line has opened
        self._running = False
        self._log = structlog.get_logger("weaver")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            every = {stored.record.id for stored in self._records.all(NETWORKS)}
            async for network_id in breathing(every | {network_id for _, network_id in self._told}, 1):
                self._consider((network_id,))
            self._running = True  # before, who has something of a network not yet considered would be told to forget it
            there = {(node_id, network_id) for network_id, one in self._wanted.items() for node_id in one.states}
            for pair in there | self._told.keys():
                self._push(pair)
            await asyncio.Event().wait()
        finally:
            self._running = False
            stop()
            telling = list(self._telling.values())
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)

    def hello(self, hello: Hello) -> None:
        """A node's line has opened: what it still has of networks is not known, and it is told everything again."""
        self._lines[hello.node_id] += 1
        for pair in [pair for pair in self._told if pair[0] == hello.node_id]:
            del self._told[pair]
        self._told |= {(hello.node_id, network_id): None for network_id in hello.networks}
        for network_id in {*self._wanted, *hello.networks} if self._running else ():
            self._push((hello.node_id, network_id))

    def _notice(self, seen: Sequence[Seen]) -> None:
        if concerned := {network_id for change in seen for network_id in touched(self._records, change)}:
            self._consider(concerned)

    def _consider(self, network_ids: Iterable[str]) -> None:
        for network_id in network_ids:
            network = self._records.get(NETWORKS, network_id)
            known = snapshot(self._records, network.record) if network else None
            wanted = _Wanted(states(known), self._records.revision) if known and known.cards else _NOTHING
            before = self._wanted.pop(network_id, _NOTHING)
            if wanted is not _NOTHING:
                self._wanted[network_id] = wanted
            told = (node_id for node_id, told_of in self._told if told_of == network_id)
            for node_id in {*wanted.states, *before.states, *told}:
                self._push((node_id, network_id))

    def _push(self, pair: Pair) -> None:
        """Have the node told, unless it knows, or is being told, or cannot be reached (its hello comes back here)."""
        under_way = self._telling.get(pair)
        if under_way is not None and under_way not in self._resting:
            return  # it looks again when its call is over
        if under_way is not None:
            under_way.cancel()  # it was to try again later
        if not self._is_due(pair) or not self._agents.is_connected(pair[0]):
            return
        self._telling[pair] = telling = asyncio.create_task(self._tell(pair), name=f"weave-{pair[1]}-{pair[0]}")
        telling.add_done_callback(lambda done: self._ended(pair, done))

    def _ended(self, pair: Pair, telling: asyncio.Task[None]) -> None:
        if self._telling.get(pair) is telling:
            del self._telling[pair]

    def _is_due(self, pair: Pair) -> bool:
        wanted = self._wish(pair)[0]
        if wanted is None:
            return pair in self._told
        return self._told.get(pair) != wanted

    def _wish(self, pair: Pair) -> tuple[NetworkState | None, int]:
        wanted = self._wanted.get(pair[1], _NOTHING)
        return wanted.states.get(pair[0]), wanted.revision

    async def _tell(self, pair: Pair) -> None:
        """Until the node knows what is wanted, or its line is gone."""
        retry_s = FIRST_RETRY_S
        while self._is_due(pair) and self._agents.is_connected(pair[0]):
            try:
                await self._tell_once(pair)
                retry_s = FIRST_RETRY_S
                continue
            except NovaCronError as error:
                self._log.warning("a node was not told of a network", node=pair[0], network=pair[1], why=error.message)
            except Exception:  # noqa: BLE001 (a fault of ours must be seen, and must not leave a node untold for ever)
                self._log.exception("telling a node of a network broke", node=pair[0], network=pair[1])
            await self._rest(pair, retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)

    async def _tell_once(self, pair: Pair) -> None:
        node_id, network_id = pair
        state, revision = self._wish(pair)
        line = self._lines[node_id]
        if state is None:
            await self._agents.call(node_id, NetworkForget(network_id=network_id), type(None), deadline_s=DEADLINE_S)
            if line == self._lines[node_id]:
                self._told.pop(pair, None)
            return
        self._told.setdefault(pair, None)  # from here on it may have something of it
        verb = NetworkApply(state=stamped(state, revision))
        await self._agents.call(node_id, verb, type(None), deadline_s=DEADLINE_S)
        if line == self._lines[node_id]:  # else another agent may be at the other end by now
            self._told[pair] = state

    async def _rest(self, pair: Pair, seconds: float) -> None:
        mine = self._telling[pair]
        self._resting.add(mine)
        try:
            await self._clock.sleep(seconds)
        finally:
            self._resting.discard(mine)
