"""Looks at every node once a second and does what control.ha.fence says: bars the epoch of a silent one, fences it.

Any number of servers may do so at once: each change is a compare-and-swap on the very record that was judged.
"""

from __future__ import annotations

import structlog

from novacron.clock import Clock
from novacron.control.ha import brake, fence
from novacron.control.ha.fence import Bar, Fence, Hold
from novacron.control.ha.protected import Protected
from novacron.control.ha.sights import Sights
from novacron.control.ha.takeover import is_worth, protection_of
from novacron.control.store.kinds import FENCE_DEVICES, FENCES, MEMBERS
from novacron.control.store.records import Records, Write, create, update
from novacron.errors import CompareFailed, NovaCronError, Reason
from novacron.model import ha, membership
from novacron.model.ha import FenceLog, Proof
from novacron.model.membership import Membership
from novacron.model.timing import Timing
from novacron.model.vm import is_wanted

LOOK_S = 1.0


class Warden:
    """`run` until cancelled."""

    def __init__(
        self,
        records: Records,
        sights: Sights,
        protected: Protected,
        server_id: str,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._records = records
        self._sights = sights
        self._protected = protected
        self._server_id = server_id
        self._clock = clock
        self._timing = timing
        self._log_since_s: dict[int, float] = {}
        self._held: dict[str, Reason] = {}
        self._log = structlog.get_logger("warden")

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except CompareFailed:
                self._log.info("somebody else was first; looking again")
            except NovaCronError as error:
                self._log.warning("a verdict was not written", why=error.message)
            await self._clock.sleep(min(LOOK_S, self._timing.heartbeat_s))

    async def _look(self) -> None:
        now_s, log = self._clock.monotonic_s(), self._fences()
        self._log_since_s = brake.watched(self._log_since_s, log, now_s)
        if lapsed := brake.lapsed(self._log_since_s, now_s, self._timing):
            await self._records.change(FENCES, log.id, lambda now: ha.forgotten(now, lapsed))
        verdicts = fence.verdicts(self._server_id, self._sights.all(), log, self.is_worth, now_s, self._timing)
        self._hear({one.node_id: one.reason for one in verdicts if isinstance(one, Hold)})
        for verdict in verdicts:
            match verdict:
                case Bar():
                    await self._bar(verdict)
                case Fence():
                    await self._fence(verdict)

    def is_worth(self, node_id: str) -> bool:
        """Whether something could be restarted elsewhere from the node, if it failed."""
        sight, provable = self._sights.get(node_id), self._records.get(FENCE_DEVICES, node_id) is not None
        if sight is None:
            return False
        vms = (stored.record for stored in self._protected.on_node(node_id))
        return any(is_wanted(vm) and is_worth(protection_of(vm), sight.member, provable=provable) for vm in vms)

    def _hear(self, held: dict[str, Reason]) -> None:
        for node_id, reason in held.items():
            if node_id not in self._held:
                self._log.error("a silent node is not fenced", node_id=node_id, why=reason.message)
        self._held = held

    def held(self, node_id: str) -> Reason | None:
        """Why a silent node is left as it is; None: it is not."""
        return self._held.get(node_id)

    async def _bar(self, verdict: Bar) -> None:
        stored = self._records.get(MEMBERS, verdict.seen.id)
        if stored is None:
            return
        new = membership.barred(stored.record, verdict.seen, verdict.reason)
        log = ha.noted(self._fences(), verdict.seen.id, verdict.seen.epoch, verdict.reason, self._timing.fences)
        if new is not None and log is not None:
            self._log.error("a node's epoch is barred", node_id=new.id, epoch=verdict.seen.epoch, why=new.reason)
            await self._records.commit(update(MEMBERS, stored, new), self._write_log(log))

    async def _fence(self, verdict: Fence) -> None:
        def write(now: Membership) -> Membership | None:
            return membership.fenced(now, verdict.seen, Proof.NONE, verdict.reason)

        stored = await self._records.change(MEMBERS, verdict.seen.id, write)
        if stored is not None:
            self._log.error("a node is fenced", node_id=stored.record.id, why=stored.record.reason)

    def _fences(self) -> FenceLog:
        stored = self._records.get(FENCES, FenceLog().id)
        return stored.record if stored else FenceLog()

    def _write_log(self, log: FenceLog) -> Write:
        stored = self._records.get(FENCES, log.id)
        return update(FENCES, stored, log) if stored else create(FENCES, log)
