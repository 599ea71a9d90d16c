"""Sees when a machine that moved answers on its network again, asked from another node than the two of the move.

The question is put while both copies still stand, so that the first answer is the one that counts. The answer comes
with its age since the question, as `asked` counts: half of the time the call took beyond that is taken for the way to
that node. So the figure is wrong by less than half of that call's round trip, and no two clocks are compared.
"""

from __future__ import annotations

import asyncio

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.networks.states import snapshot, states
from novacron.control.store.kinds import NETWORKS, NODES
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.migration import Migration
from novacron.model.vm import Vm, cards_of
from novacron.wire.network import NetworkAnswer, NetworkPing

WITHIN_S = 3.0
SLACK_S = 2.0


class Finding(msgspec.Struct, frozen=True):
    """gap_ms: from the source's stop to the first answer; None: not measured, and `note` says why, if it was asked."""

    gap_ms: float | None = None
    checked_by: str = ""
    note: str = ""


class _Question(msgspec.Struct, frozen=True):
    """Who is asked for which address on which network."""

    node_id: str
    node_name: str
    network_id: str
    address: str


class Reachability:
    """`begin` asks in the background, `finding` waits for what came of it. Held in memory only."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._asking: dict[str, asyncio.Task[Finding]] = {}

    def begin(self, migration: Migration, vm: Vm, stopped_at_s: float) -> None:
        """Ask for the machine, whose source stopped then by our clock; nothing when it has no address or nobody can."""
        if migration.id in self._asking:
            return
        question = self._question(migration, vm)
        if question is not None:
            asking = asyncio.create_task(self._ask(question, stopped_at_s), name=f"reachable-{migration.id}")
            self._asking[migration.id] = asking

    async def finding(self, migration_id: str) -> Finding:
        """What was found, within WITHIN_S of `begin`; empty when nothing was asked."""
        asking = self._asking.get(migration_id)
        if asking is None:
            return Finding()
        found = await asyncio.shield(asking)
        self._asking.pop(migration_id, None)
        return found

    async def close(self) -> None:
        """Stop asking."""
        asking = list(self._asking.values())
        self._asking.clear()
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, question: _Question, stopped_at_s: float) -> Finding:
        deadline_ms = int(WITHIN_S * 1e3)
        verb = NetworkPing(network_id=question.network_id, address=question.address, deadline_ms=deadline_ms)
        where = f"network: {question.address}, asked for from {question.node_name},"
        asked_at_s = self._clock.monotonic_s()
        try:
            deadline_s = WITHIN_S + SLACK_S
            answer = await self._agents.call(question.node_id, verb, NetworkAnswer, deadline_s=deadline_s)
        except NovaCronError as error:
            return Finding(note=f"{where} could not be checked: {error.message}")
        if answer.answered_after_ms is None:
            note = f"{where} did not answer within {WITHIN_S:g} s; guests need not answer ARP"
            return Finding(checked_by=question.node_id, note=note)
        gap_ms = gap(stopped_at_s, asked_at_s, self._clock.monotonic_s(), answer.answered_after_ms)
        return Finding(gap_ms=gap_ms, checked_by=question.node_id)

    def _question(self, migration: Migration, vm: Vm) -> _Question | None:
        nic = next((nic for nic in cards_of(vm) if nic.addresses), None)
        network = self._records.get(NETWORKS, nic.network_id) if nic else None
        if nic is None or network is None:
            return None
        having = set(states(snapshot(self._records, network.record)))
        third = sorted(having - {migration.source_node, migration.target_node}, key=self._name)
        for node_id in (*third, migration.source_node):
            if self._agents.is_connected(node_id):
                return _Question(node_id, self._name(node_id), nic.network_id, nic.addresses[0])
        return None

    def _name(self, node_id: str) -> str:
        return self._records.name(NODES, node_id)


def gap(stopped_at_s: float, asked_at_s: float, heard_at_s: float, answered_after_ms: float) -> float:
    """Milliseconds from the stop to the answer; the call's ways there and back are taken to be alike."""
    way_s = max(0.0, heard_at_s - asked_at_s - answered_after_ms / 1e3) / 2
    return (asked_at_s + way_s - stopped_at_s) * 1e3 + answered_after_ms
