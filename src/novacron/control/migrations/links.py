"""Has the link between two nodes measured, by hand or before a large move of whose link nothing fresh is known.

Nothing of it stops a migration: what cannot be measured stays unknown, and the answer says why. While a stream uses one
of the two nodes nothing is measured, since both would be slower and neither figure true.
"""

from __future__ import annotations

import asyncio

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.migrations import history
from novacron.control.migrations.plan import NodePlan, Plan
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.queue import is_fresh
from novacron.control.store.kinds import LINKS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import WRITE_TRIES, Records, create, update
from novacron.errors import CompareFailed, NovaCronError, Unavailable
from novacron.model.link import LinkFigure
from novacron.model.migration import Migration, MigrationKind, is_final
from novacron.model.vm import running_spec
from novacron.wire.link import LinkAt, LinkFound, LinkListen, LinkProbe

WORTH_BYTES = 1 << 30
"""A move of less is over before it would have been worth the second."""
DEADLINE_S = 10.0


class Links:
    """`probe` measures, `freshen` where it is worth it. Who asks for a link that is being measured waits for that."""

    def __init__(self, records: Records, agents: Agents, clock: Clock, planner: Planner) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._planner = planner
        self._probing: dict[tuple[str, str], asyncio.Task[LinkFigure]] = {}

    async def freshen(self, plan: Plan) -> str:
        """Measure the link that the plan's move would take, if it is large and nothing fresh is known of its link.

        Why that came to nothing, in a sentence; else empty.
        """
        node, goals = _likely(plan), plan.asked.effective.goals
        if node is None or self._size_bytes(plan, node) < WORTH_BYTES:
            return ""
        learnt, cap = self._planner.learnt(), goals.bandwidth_bytes_per_s
        if history.is_known(learnt.past, plan.source_id, node.node_id, learnt.probes, cap):
            return ""
        try:
            await self.probe(plan.source_id, node.node_id, cap)
        except Unavailable as unknown:
            return f"the link to {node.node_name} was not measured: {unknown.message}"
        return ""

    async def probe(self, source_id: str, target_id: str, cap_bytes_per_s: int = 0) -> LinkFigure:
        """Send a burst of at most a second from the one node to the other, no faster than the cap (0: as it goes).

        What is found is recorded. :raise Unavailable: it cannot be measured now; says why.
        """
        key = (source_id, target_id)
        probing = self._probing.get(key)
        if probing is None:
            work = self._probe(source_id, target_id, cap_bytes_per_s)
            probing = self._probing[key] = asyncio.create_task(work, name="probe-link")
            probing.add_done_callback(lambda done: self._probed(key, done))
        return await asyncio.shield(probing)

    def _probed(self, key: tuple[str, str], done: asyncio.Task[LinkFigure]) -> None:
        self._probing.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever still waits gets it; else it is nobody's

    async def _probe(self, source_id: str, target_id: str, cap: int) -> LinkFigure:
        source = self._records.find(NODES, source_id).record
        using = self._using({source_id, target_id})
        if using:
            raise Unavailable(f"migration {using} is under way there")
        if source.facts is None or not source.facts.migration_address:
            raise Unavailable(f"{source.name} has not said where its streams come from")
        try:
            listen = LinkListen(peer=source.facts.migration_address)
            at = await self._agents.call(target_id, listen, LinkAt, deadline_s=DEADLINE_S)
            verb = LinkProbe(to=at, bytes_per_s=cap)
            found = await self._agents.call(source_id, verb, LinkFound, deadline_s=DEADLINE_S)
        except NovaCronError as error:
            raise Unavailable(error.message, error.reasons) from error
        return await self._remember(source_id, target_id, found, cap)

    async def _remember(self, source_id: str, target_id: str, found: LinkFound, cap: int) -> LinkFigure:
        now = self._clock.wall()
        for _ in range(WRITE_TRIES):
            key = (source_id, target_id)
            every = self._records.all(LINKS)
            old = next((one for one in every if (one.record.source_node, one.record.target_node) == key), None)
            figure = LinkFigure(
                id=old.record.id if old else self._records.new_id(),
                source_node=source_id,
                target_node=target_id,
                created_at=old.record.created_at if old else now,
                at=now,
                rate_bytes_per_s=found.rate_bytes_per_s,
                rtt_ms=found.rtt_ms,
                sent_bytes=found.sent_bytes,
                cap_bytes_per_s=cap,
            )
            try:
                revision = await self._records.commit(update(LINKS, old, figure) if old else create(LINKS, figure))
            except CompareFailed:
                await self._records.refresh()
                continue
            await self._records.caught_up(revision)
            return figure
        raise CompareFailed("the link's record is being changed by others: try again")

    def _using(self, nodes: set[str]) -> str:
        """A migration that streams from or to one of these nodes; empty: none does."""
        every: list[Migration] = [stored.record for stored in self._records.all(MIGRATIONS)]
        under_way = (one for one in every if not is_final(one) and not is_fresh(one) and not one.at_rest)
        return next((one.id for one in under_way if nodes & {one.source_node, one.target_node}), "")

    def _size_bytes(self, plan: Plan, node: NodePlan) -> int:
        """What would have to be sent once: memory, unless it is moved without, and disks."""
        stored = self._records.get(VMS, plan.vm_id)
        streams = stored is not None and not plan.at_rest and plan.asked.kind is not MigrationKind.COLD
        memory = running_spec(stored.record).memory_mib << 20 if stored and streams else 0
        return memory + sum(move.used_bytes or move.size_bytes for move in node.disks)


def _likely(plan: Plan) -> NodePlan | None:
    """Where it would go, also if no way there reaches the goals by what is known of its link."""
    if plan.chosen is not None and not plan.chosen.is_here:
        return plan.chosen
    asked = plan.asked.target_id
    able = (one for one in plan.nodes if one.unmet and not one.is_here and asked in ("", one.node_id))
    return min(able, key=lambda one: (-(one.score or 0.0), one.node_name), default=None)
