"""Watches over nodes: a silent one becomes suspect, then down, or is fenced; its VMs' state is then unknown.

A node that heartbeats is judged by its membership record, one of an older version by its line. What is written here is
the word that people see and that placing goes by; what fences a node is control.ha.warden.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.ha.fence import Worth
from novacron.control.ha.sight import Sight, silent_s, suspect_after_s
from novacron.control.ha.sights import Sights
from novacron.control.ha.warden import Warden
from novacron.control.nodes.lost_vms import LostVms
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import NovaCronError, Reason
from novacron.model import membership
from novacron.model.ha import FenceClass
from novacron.model.membership import MemberState
from novacron.model.node import Node, NodeState
from novacron.model.timing import Timing
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


def judge_member(
    node: Node, sight: Sight, is_worth: Worth, held: Reason | None, now_s: float, timing: Timing
) -> Verdict:
    """The state of a node that heartbeats. is_worth: something of it could be restarted elsewhere: it will be fenced.

    held: why it is not fenced although it is silent.
    """
    member, silence_s = sight.member, silent_s(sight, now_s)
    silent = silence_s >= suspect_after_s(sight, timing)
    worth = silent and is_worth(node.id)
    down_after_s = DOWN_AFTER_S / SUSPECT_AFTER_S * timing.suspect_s
    state = membership.state_of(member, silent=silent, barrable=worth or silence_s < down_after_s)
    if member.state is not MemberState.UP:
        return Verdict(state, member.reason)
    if not silent:
        return Verdict(state, "its heartbeats count" if node.state is not NodeState.UP else node.state_reason)
    if state is NodeState.DOWN:
        return Verdict(state, f"no heartbeat for {down_after_s:.0f} s; its VMs may still run")
    why = f": {held.message}" if held is not None and worth else ""
    return Verdict(state, f"no heartbeat for {timing.suspect_s:.0f} s{why}")


def judge(state: NodeState, silent_s: float) -> Verdict | None:
    """What the silence of a node's line means, if it takes no part in memberships; None: its state stands.

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

    def __init__(
        self, records: Records, lines: Lines, clock: Clock, sights: Sights, warden: Warden, timing: Timing
    ) -> None:
        self._records = records
        self._lines = lines
        self._sights = sights
        self._warden = warden
        self._timing = timing
        self._clock = clock
        self._log = structlog.get_logger("health")

    async def run(self) -> None:
        started_s = self._clock.monotonic_s()
        vms = LostVms(self._records)
        try:
            while True:
                lost = await self._judge_all(self._clock.monotonic_s() - started_s)
                await self._mark_vms(vms.to_mark(lost))
                await self._clock.sleep(min(LOOK_INTERVAL_S, self._timing.heartbeat_s))
        finally:
            vms.close()

    async def _judge_all(self, up_s: float) -> Mapping[str, bool]:
        """By node id, of those whose state was written: whether what its VMs were last seen to be is old."""
        lost: dict[str, bool] = {}
        for stored in self._records.all(NODES):
            with self._unwritten(stored.record.name):
                lost[stored.record.id] = await self._is_lost(stored.record, up_s)
        return lost

    async def _is_lost(self, node: Node, up_s: float) -> bool:
        """Judge the node and write the verdict; whether what its VMs were last seen to be is old."""
        verdict = self._judged(node, up_s)
        if verdict is None or (verdict.state, verdict.reason) == (node.state, node.state_reason):
            return node.state is not NodeState.UP
        self._log.warning("node", node=node.name, state=verdict.state.value, why=verdict.reason)
        await self._records.change(NODES, node.id, lambda old: self._turned(old, verdict))
        return verdict.state is not NodeState.UP

    def _judged(self, node: Node, up_s: float) -> Verdict | None:
        sight = self._sights.get(node.id)
        if sight is not None and sight.member.fence_class is not FenceClass.NONE:
            held, now_s = self._warden.held(node.id), self._clock.monotonic_s()
            return judge_member(node, sight, self._warden.is_worth, held, now_s, self._timing)
        heard_ago_s = self._lines.heard_ago_s(node.id)
        return judge(node.state, up_s if heard_ago_s is None else heard_ago_s)

    @contextlib.contextmanager
    def _unwritten(self, name: str) -> Iterator[None]:
        """What could not be written is said, and tried again at the next look."""
        try:
            yield
        except NovaCronError as error:
            self._log.warning("a state was not written", name=name, why=error.message)

    def _turned(self, node: Node, verdict: Verdict) -> Node:
        now = self._clock.wall()
        since = node.state_since if node.state is verdict.state else now
        return msgspec.structs.replace(
            node, state=verdict.state, state_reason=verdict.reason, state_since=since, updated_at=now
        )

    async def _mark_vms(self, vms: Iterable[Stored[Vm]]) -> None:
        for vm in (stored.record for stored in vms):
            with self._unwritten(vm.name):
                await self._records.change(VMS, vm.id, functools.partial(self._marked, vm.node_id, not vm.node_lost))

    def _marked(self, node_id: str, lost: bool, vm: Vm) -> Vm | None:
        if vm.node_id != node_id:
            return None
        return msgspec.structs.replace(vm, node_lost=lost, updated_at=self._clock.wall())
