"""Takes in what nodes say: a hello makes or renews the node's record, a report the records of the VMs it owns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.link import Agents
from novacron.control.migrations.strays import Sweeper
from novacron.control.store.kinds import MEMBERS, NODES, VMS
from novacron.control.store.records import Records, Seen
from novacron.control.vms import decide
from novacron.errors import NameTaken, NotFound
from novacron.model import membership
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import MemberState
from novacron.model.node import Node, NodeState
from novacron.model.vm import Vm
from novacron.wire.agent import Hello, KeptCopy, Report

EVERY = 16
"""Reports taken in at one go: when a server begins to lead, every node's are taken in at the same time."""


class Observer:
    """Handlers for the link; it awaits them one after the other for each node, so reports keep their order."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._sweeper = Sweeper(records, agents)
        self._crashes: dict[str, dict[str, MachineReport]] = {}  # by VM and node: told while a migration held it
        self._writing: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("observer")

    async def run(self) -> None:
        """Judge a crash that was told while a migration held the VM once the VM is let go; until cancelled."""
        stop = self._records.subscribe(self._notice)
        try:
            await asyncio.Event().wait()
        finally:
            stop()
            for task in self._writing:
                task.cancel()
            await asyncio.gather(*self._writing, return_exceptions=True)

    async def hello(self, hello: Hello) -> None:
        """A node has come (back).

        :raise NameTaken: another node has its name; it is not taken in, and gets no work.
        """
        now = self._clock.wall()
        if not hello.takes_part and self._records.get(MEMBERS, hello.node_id) is not None:
            await self._records.change(MEMBERS, hello.node_id, membership.withdrawn)
        if self._records.get(NODES, hello.node_id) is None:
            node = Node(
                id=hello.node_id,
                name=hello.node_name,
                state=NodeState.UP,
                state_reason="its agent joined",
                created_at=now,
                updated_at=now,
                state_since=now,
                facts=hello.facts,
            )
            try:
                await self._records.create(NODES, node)
            except NameTaken:
                self._log.error("a node was refused: its name is taken", node=hello.node_name, node_id=hello.node_id)
                raise
            self._log.info("node joined", node=hello.node_name)
        else:
            await self._records.change(NODES, hello.node_id, lambda old: self._returned(old, hello))
        await self._take(hello.node_id, hello.machines, hello.copies, complete=True)

    async def report(self, node_id: str, report: Report) -> None:
        """A heartbeat, or news of some machines."""
        await self._take(node_id, report.machines, report.copies, complete=report.complete)

    def _returned(self, node: Node, hello: Hello) -> Node:
        now = self._clock.wall()
        renewed = msgspec.structs.replace(node, name=hello.node_name, facts=hello.facts)
        if node.state is not NodeState.UP and self._counts(node.id):
            renewed = msgspec.structs.replace(
                renewed, state=NodeState.UP, state_since=now, state_reason="its agent is back"
            )
        return node if renewed == node else msgspec.structs.replace(renewed, updated_at=now)

    async def _take(
        self, node_id: str, reports: Iterable[MachineReport], copies: tuple[KeptCopy, ...], *, complete: bool
    ) -> None:
        reports = tuple(reports)
        async for report in breathing(reports, EVERY):
            stored = self._records.get(VMS, report.vm_id)
            if stored is not None and stored.record.migration_id:
                self._keep(node_id, report)
            elif stored is not None and self._is_news(stored.record, node_id, report):
                await self._write(node_id, report)
        if complete:
            await self._miss(node_id, {report.vm_id for report in reports})
            self._sweeper.look(node_id, reports, copies)

    def _keep(self, node_id: str, report: MachineReport) -> None:
        """For when the VM is let go: the migration's steps tell what becomes of it, but not that it then dies."""
        crashes = self._crashes.setdefault(report.vm_id, {})
        if report.status is MachineStatus.CRASHED:
            crashes[node_id] = report
        else:
            crashes.pop(node_id, None)

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is not VMS:
                continue
            if change.now is not None and not change.now.migration_id:
                self._judge(change.now)
            elif change.now is None and change.before is not None:
                self._crashes.pop(change.before.id, None)

    def _judge(self, vm: Vm) -> None:
        report = self._crashes.pop(vm.id, {}).get(vm.node_id)
        if report is not None and self._is_news(vm, vm.node_id, report):
            task = asyncio.create_task(self._write(vm.node_id, report), name=f"crashed-{vm.id}")
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    def _is_news(self, vm: Vm, node_id: str, report: MachineReport) -> bool:
        was_lost = vm.node_lost and self._counts(node_id)
        return decide.speaks_for(vm, node_id, report) and (vm.observed != report or was_lost)

    def _counts(self, node_id: str) -> bool:
        """Whether the node takes part now: one that was fenced is heard, but back only once it has joined again."""
        stored = self._records.get(MEMBERS, node_id)
        return stored is None or stored.record.state is MemberState.UP

    async def _write(self, node_id: str, report: MachineReport) -> None:
        def see(vm: Vm) -> Vm | None:
            if not decide.speaks_for(vm, node_id, report):
                return None
            found = msgspec.structs.replace(vm, node_lost=vm.node_lost and not self._counts(node_id))
            return decide.observed(found, report, self._clock.wall())

        try:
            await self._records.change(VMS, report.vm_id, see)
        except NotFound:
            self._log.info("a VM was deleted while its node reported it", vm_id=report.vm_id)

    async def _miss(self, node_id: str, reported: set[str]) -> None:
        """VMs the node owns and does not know: nothing of them runs there."""
        for stored in self._records.on_node(VMS, node_id):
            vm = stored.record
            if vm.id in reported or vm.migration_id:
                continue
            if vm.node_lost or (vm.observed is not None and vm.observed.status is not MachineStatus.ABSENT):
                now = self._clock.wall()
                status = MachineStatus.ABSENT
                await self._write(
                    node_id, MachineReport(vm_id=vm.id, generation=vm.generation, status=status, since=now)
                )
