"""Watches over nodes: a silent one becomes suspect, then down; its VMs' state is then unknown, never guessed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.node import Node, NodeState
from novacron.model.vm import Vm

LOOK_INTERVAL_S = 1.0
SUSPECT_AFTER_S = 10.0
DOWN_AFTER_S = 30.0


class Lines(Protocol):
    """What health knows of the line to each agent."""

    def heard_ago_s(self, node_id: str) -> float | None:
        """Seconds since the node's last frame; None: none since this server started."""
        ...


class Verdict(msgspec.Struct, frozen=True):
    """The state a node should be in, and why."""

    state: NodeState
    reason: str


def judge(state: NodeState, silent_s: float) -> Verdict | None:
    """What a node's silence means; None: its state stands.

    Nothing is restarted elsewhere on this verdict: a silent node may well run its machines (DESIGN §6).
    """
    if state in (NodeState.UP, NodeState.JOINING) and silent_s >= SUSPECT_AFTER_S:
        return Verdict(NodeState.SUSPECT, f"not heard of for {SUSPECT_AFTER_S:.0f} s")
    if state is NodeState.SUSPECT and silent_s >= DOWN_AFTER_S:
        return Verdict(NodeState.DOWN, f"not heard of for {DOWN_AFTER_S:.0f} s; its VMs may still run")
    if state in (NodeState.SUSPECT, NodeState.DOWN) and silent_s < SUSPECT_AFTER_S:
        return Verdict(NodeState.UP, "it is heard again")
    return None


class Health:
    """`run` until cancelled. Silence is counted by this process's own clock, from its own start at the earliest."""

    def __init__(self, records: Records, lines: Lines, clock: Clock) -> None:
        self._records = records
        self._lines = lines
        self._clock = clock
        self._log = structlog.get_logger("health")

    async def run(self) -> None:
        started_s = self._clock.monotonic_s()
        while True:
            up_s = self._clock.monotonic_s() - started_s
            lost: dict[str, bool] = {}
            for stored in self._records.all(NODES):
                with self._unwritten(stored.record.name):
                    lost[stored.record.id] = await self._is_lost(stored.record, up_s)
            await self._mark_vms(lost)
            await self._clock.sleep(LOOK_INTERVAL_S)

    async def _is_lost(self, node: Node, up_s: float) -> bool:
        """Judge the node and write the verdict; whether what its VMs were last seen to be is old."""
        heard_ago_s = self._lines.heard_ago_s(node.id)
        verdict = judge(node.state, up_s if heard_ago_s is None else heard_ago_s)
        if verdict is None:
            return node.state is not NodeState.UP
        self._log.warning("node", node=node.name, state=verdict.state.value, why=verdict.reason)
        await self._records.change(NODES, node.id, lambda old: self._turned(old, verdict))
        return verdict.state is not NodeState.UP

    @contextlib.contextmanager
    def _unwritten(self, name: str) -> Iterator[None]:
        """What could not be written is said, and tried again at the next look."""
        try:
            yield
        except NovaCronError as error:
            self._log.warning("a state was not written", name=name, why=error.message)

    def _turned(self, node: Node, verdict: Verdict) -> Node:
        now = self._clock.wall()
        return msgspec.structs.replace(
            node, state=verdict.state, state_reason=verdict.reason, state_since=now, updated_at=now
        )

    async def _mark_vms(self, lost: Mapping[str, bool]) -> None:
        """lost: by node id."""
        for stored in self._records.all(VMS):
            vm = stored.record
            if vm.node_lost != lost.get(vm.node_id, vm.node_lost):
                with self._unwritten(vm.name):
                    await self._records.change(
                        VMS, vm.id, functools.partial(self._marked, vm.node_id, not vm.node_lost)
                    )

    def _marked(self, node_id: str, lost: bool, vm: Vm) -> Vm | None:
        if vm.node_id != node_id:
            return None
        return msgspec.structs.replace(vm, node_lost=lost, updated_at=self._clock.wall())
