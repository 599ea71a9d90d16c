"""Has the VMs of fenced nodes started elsewhere, and those that ended with their node started again where they are.

What may be restarted, in which order, as what record: control.ha.takeover. Where: the scheduler, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import Bell
from novacron.control.ha import takeover
from novacron.control.ha.backoff import Backoff
from novacron.control.ha.claims import claim_of
from novacron.control.ha.protected import OURS, Protected
from novacron.control.room import Room
from novacron.control.store.kinds import MEMBERS, MIGRATIONS, VMS
from novacron.control.store.records import Records, Seen, Write, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.control.vms.decide import with_problem
from novacron.control.vms.placing import Placing
from novacron.errors import CompareFailed, NoRoom, NovaCronError, Reason
from novacron.model.ha import HaPolicy
from novacron.model.membership import Membership, MemberState
from novacron.model.vm import Vm

LOOK_S = 1.0
TOGETHER = 16
"""VMs taken over in one transaction: each waits for the store, and a node may have hundreds."""

_TOLD = 5


class Rescuer:
    """`run` until cancelled. A second one does no harm: each VM is taken over by one compare-and-swap."""

    def __init__(self, records: Records, protected: Protected, room: Room, clock: Clock, pool_id: str) -> None:
        self._records = records
        self._protected = protected
        self._room = room
        self._clock = clock
        self._pool_id = pool_id
        self._backoff = Backoff()
        self._together = TOGETHER
        self._bell = Bell()
        self._log = structlog.get_logger("rescuer")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            while True:
                await self._try()
                await self._bell.rest(self._clock, LOOK_S)
        finally:
            stop()

    def _notice(self, seen: Sequence[Seen]) -> None:
        """A node that is fenced just now has VMs that wait."""
        if any(change.kind is MEMBERS and _is_news(change) for change in seen):
            self._bell.ring()

    async def _try(self) -> None:
        """Look once; what goes wrong is said, and tried again at the next look."""
        try:
            await self._look()
            self._together = TOGETHER
        except CompareFailed:
            self._together = 1  # the one that has changed must not hold up the others
            self._log.info("somebody else was first; looking again")
        except NovaCronError as error:
            self._log.warning("a VM was not restarted", why=error.message)

    async def _look(self) -> None:
        for member in self._records.all(MEMBERS):
            if member.record.state is MemberState.FENCED:
                await self._rescue(member)
        for stored in self._protected.uneasy():
            home = self._records.get(MEMBERS, stored.record.node_id)
            if home is not None and home.record.state is MemberState.UP:
                await self._tend(stored, home.record)

    # -- VMs of a fenced node --------------------------------------------------------------------------------

    async def _rescue(self, member: Stored[Membership]) -> None:
        async with self._room.turn():
            ticket = await self._room.ticket()
            vms = {one.record.id: one for one in self._lost(member.record)}
            if not vms:
                return
            claims = [claim_of(self._records, one.record, self._pool_id) for one in vms.values()]
            free, held = takeover.admitted(member.record, claims)
            placing = Placing(self._room)
            waiting: list[Write] = []
            for number, claim in enumerate(free, 1):
                try:
                    target_id = placing.place(claim.vm.name, claim.need, leaving=claim.vm.id)
                except NoRoom as full:
                    await self._tell(claim.vm, _nowhere(full))
                else:
                    placing.promise(claim.need, target_id, runs=True)
                    waiting += self._taken_over(vms[claim.vm.id], member, target_id)
                if waiting and (number % self._together == 0 or number == len(free)):
                    revision = await self._records.commit(*waiting, unchanged(MEMBERS, member), ticket)
                    ticket, waiting = self._room.next_ticket(revision), []
        for claim, reason in held:
            if claim.protection.policy is not HaPolicy.NONE:
                await self._tell(claim.vm, reason)

    def _lost(self, member: Membership) -> Iterable[Stored[Vm]]:
        """Those of its VMs that may be started elsewhere: a person's word may speak of all of them."""
        return self._records.on_node(VMS, member.id) if member.all_vms else self._protected.on_node(member.id)

    def _taken_over(self, vm: Stored[Vm], member: Stored[Membership], target_id: str) -> list[Write]:
        """What is to be written of a VM so that it is the target's. When that loses, look again."""
        now = self._clock.wall()
        new = takeover.taken_over(vm.record, member.record, target_id, self._records.new_id(), now)
        writes = [update(VMS, vm, new)]
        migration = self._records.get(MIGRATIONS, vm.record.migration_id) if vm.record.migration_id else None
        if migration is not None:
            writes.append(update(MIGRATIONS, migration, takeover.cut_short(migration.record, member.record, now)))
        self._log.error("a VM is restarted elsewhere", vm=vm.record.name, node_id=target_id, why=member.record.reason)
        return writes

    async def _tell(self, vm: Vm, reason: Reason) -> None:
        """Have its record say why it is not restarted; a problem it had before is not lost by that."""
        now = self._clock.wall()

        def write(old: Vm) -> Vm | None:
            if old.node_id != vm.node_id or (old.problem is not None and not old.problem.code.startswith(OURS)):
                return None
            if old.problem is not None and (old.problem.code, old.problem.message) == (reason.code, reason.message):
                return None
            return with_problem(old, reason.code, reason.message, reason.remedy, now)

        await self._records.change(VMS, vm.id, write)

    # -- VMs of a node that is up ----------------------------------------------------------------------------

    async def _tend(self, stored: Stored[Vm], member: Membership) -> None:
        """Start it again if it ended with its node; a word of ours about a node that was away is over."""
        vm, now_s = stored.record, self._clock.monotonic_s()
        if vm.spec.ha.policy is HaPolicy.NONE and vm.problem is None:
            return
        new = takeover.restart_here(vm, vm.spec.ha, member, self._records.new_id(), self._clock.wall())
        if new is not None and not vm.node_lost and self._backoff.may(vm.id, now_s):
            self._log.warning("a VM is started again", vm=vm.name)
            await self._records.commit(update(VMS, stored, new))
        elif vm.problem is not None and vm.problem.code.startswith(OURS) and not vm.node_lost:
            await self._records.change(VMS, vm.id, _untold)


def _is_news(change: Seen) -> bool:
    return change.now is not None and change.now.state is MemberState.FENCED and change.now != change.before


def _untold(vm: Vm) -> Vm | None:
    ours = vm.problem is not None and vm.problem.code.startswith(OURS)
    return msgspec.structs.replace(vm, problem=None) if ours else None


def _nowhere(full: NoRoom) -> Reason:
    words: Sequence[str] = [reason.message for reason in full.reasons[:_TOLD]] or ["there is no other node"]
    remedy = "make room on another node; a disk in a pool that nodes do not share comes back with its own node"
    return Reason("ha.nowhere", f"its node was fenced, and no other can take it: {'; '.join(words)}", remedy=remedy)
