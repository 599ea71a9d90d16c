"""Decides what requests about fence devices mean, and what a person's word that a node is off does."""

from __future__ import annotations

import structlog

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.fencing.device import Opens
from novacron.control.fencing.seal import Seal
from novacron.control.ha import word
from novacron.control.ha.sights import Sights
from novacron.control.link import Agents
from novacron.control.once import Once, Outcome
from novacron.control.store.kinds import FENCE_DEVICES, MEMBERS, NODES
from novacron.control.store.records import Records, create, remove, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, NotFound, Reason, StateConflict
from novacron.model.fence_device import FenceDevice, FenceDeviceKind, Power, check, host_and_port
from novacron.model.ha import Proof
from novacron.model.membership import Membership, MemberState
from novacron.model.node import Node
from novacron.model.timing import Timing
from novacron.wire.membership import Hold
from novacron.wire.rest.fencing import FenceDeviceSet

HOLD_WITHIN_S = 15.0


class FencingService:
    """sights: what this server has seen of every node, by which it knows who is silent."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        sights: Sights,
        clock: Clock,
        timing: Timing,
        seal: Seal,
        opens: Opens,
    ) -> None:
        self._records = records
        self._agents = agents
        self._sights = sights
        self._clock = clock
        self._timing = timing
        self._seal = seal
        self._opens = opens
        self._log = structlog.get_logger("fencing")

    # -- devices -------------------------------------------------------------------------------------------

    def device(self, ref: str) -> tuple[Node, Stored[FenceDevice]]:
        """:raise NotFound: no such node, or it has no device."""
        node = self._records.find(NODES, ref).record
        stored = self._records.get(FENCE_DEVICES, node.id)
        if stored is None:
            remedy = f"novacron node fence-device set {node.name} …"
            reason = Reason("fence_device.none", "it has no fence device", subject=node.name, remedy=remedy)
            raise NotFound(f"node {node.name} has no fence device", [reason])
        return node, stored

    async def put(
        self, ref: str, asked: FenceDeviceSet, by: str, held: frozenset[str] | None
    ) -> tuple[Node, Stored[FenceDevice]]:
        """Give a node this device, in place of any it had. The device itself is not spoken to: `probe` does that.

        :raise InvalidInput: names the field. :raise NotFound, PreconditionFailed, CompareFailed
        """
        node = self._records.find(NODES, ref)
        before, now = self._records.get(FENCE_DEVICES, node.record.id), self._clock.wall()
        if before is not None:
            check_match(held, before)
        password = asked.password.get_secret_value()
        bare = FenceDevice(
            id=node.record.id,
            kind=FenceDeviceKind(asked.kind),
            address=asked.address,
            user=asked.user,
            sealed_password="",
            system=asked.system,
            fingerprint=asked.fingerprint.replace(":", "").lower(),
            created_at=before.record.created_at if before else now,
            updated_at=now,
        )
        check(bare, password)
        host_and_port(bare)
        device = self._seal.closed(bare, password)
        write = update(FENCE_DEVICES, before, device) if before else create(FENCE_DEVICES, device)
        revision = await self._records.commit(write, unchanged(NODES, node))
        self._log.info("a fence device was set", node=node.record.name, kind=device.kind.value, by=by)
        return node.record, Stored(device, revision)

    async def remove(self, ref: str, by: str, held: frozenset[str] | None) -> None:
        """Reach the node's power no more. :raise NotFound, PreconditionFailed, CompareFailed"""
        node, stored = self.device(ref)
        check_match(held, stored)
        await self._records.commit(remove(FENCE_DEVICES, stored))
        self._log.info("a fence device was removed", node=node.name, by=by)

    async def probe(self, ref: str) -> tuple[Node, Power, Reason | None]:
        """Read the power's state, and what is wrong with it. Nothing is switched.

        :raise NotFound. :raise NovaCronError: it could not be read.
        """
        node, stored = self.device(ref)
        power = await self._opens(stored.record).power()
        wrong = None
        if power is Power.OFF and self._is_heard(node.id):
            said = f"it reads {power.value}, but node {node.name} heartbeats: this is another machine's power"
            wrong = Reason("fence_device.other_machine", said, subject=node.name, remedy="correct address or system")
        return node, power, wrong

    # -- a person's word -----------------------------------------------------------------------------------

    async def confirm_off(
        self, ref: str, by: str, once: Once, held: frozenset[str] | None = None, *, with_unprotected: bool = False
    ) -> tuple[Node, Membership]:
        """Somebody has seen that the node is off: what ran there may be started elsewhere.

        :raise StateConflict: it heartbeats, was heard of a moment ago, or takes no part in memberships.
        :raise NotFound, PreconditionFailed
        """
        stored = self._records.find(NODES, ref)
        check_match(held, stored)
        node = stored.record

        async def say() -> Outcome:
            return await self._noted(once, await self._say_off(node, by, with_unprotected=with_unprotected))

        member: Membership = (await once.perform(MEMBERS, say)).stored.record
        return node, member

    async def _say_off(self, node: Node, by: str, *, with_unprotected: bool) -> Membership:
        sight = self._sights.get(node.id)
        if sight is None:
            said, remedy = "it takes no part in memberships", "bring its agent up to this version"
            raise _refused(node, Reason("node.no_member", said, subject=node.name, remedy=remedy))
        member = sight.member
        if member.proof is not Proof.NONE and (member.all_vms or not with_unprotected):
            return member
        why = word.refusal(sight, self._clock.monotonic_s(), self._timing)
        if why is not None:
            raise _refused(node, why)
        reason = f"{by} said that it is off"

        def write(now: Membership) -> Membership | None:
            return word.taken(now, member, reason, all_vms=with_unprotected)

        stored = await self._records.change(MEMBERS, node.id, write)
        if stored is None:
            raise CompareFailed(f"node {node.name} was heard of, or fenced, at this moment: look again")
        self._log.error("a node is off by a person's word", node=node.name, by=by, unprotected=with_unprotected)
        return stored.record

    async def hold(self, ref: str, for_s: float, by: str, once: Once, held: frozenset[str] | None = None) -> Node:
        """Leave the node and its machines alone for so long, although its agent is away: it asks for that itself, and
        may go once this returns. The join of its next agent ends it.

        :raise InvalidInput: it is too short or too long. :raise NodeUnreachable, DeadlineExceeded: it is not on hold.
        :raise NotFound, PreconditionFailed
        """
        stored = self._records.find(NODES, ref)
        check_match(held, stored)
        node = stored.record

        async def hold() -> Outcome:
            await self._agents.call(node.id, Hold(ttl_s=for_s), type(None), deadline_s=HOLD_WITHIN_S)
            self._log.info("a node is on hold", node=node.name, for_s=for_s, by=by)
            return await self._noted(once, node)

        await once.perform(NODES, hold)
        return node

    async def _noted(self, once: Once, record: Node | Membership) -> Outcome:
        """The answer to a repeat, kept by itself: to do either again does no harm."""
        note = once.note(record, 200)
        revision = await self._records.commit(*note) if note else self._records.revision
        return Outcome(Stored(record, revision), 200)

    def _is_heard(self, node_id: str) -> bool:
        sight = self._sights.get(node_id)
        up = sight is not None and sight.member.state is MemberState.UP
        return sight is not None and up and not word.is_silent(sight, self._clock.monotonic_s(), self._timing)


def _refused(node: Node, why: Reason) -> StateConflict:
    return StateConflict(f"node {node.name} cannot be taken for off: {why.message}", [why])
