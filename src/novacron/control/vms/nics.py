"""Decides what requests about the network cards of a VM that exists mean, and records it.

Cards come and go as hardware does (control.vms.hardware). What may pass a card is no hardware: the weaver sees the
record change and tells the nodes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.once import Change, Once, Outcome
from novacron.control.room import Room
from novacron.control.scheduler.filters import connected, overlaid
from novacron.control.store.records import VMS, Records
from novacron.control.vms import asked as verbs
from novacron.control.vms import birth, hardware
from novacron.control.vms.asked import Ask
from novacron.control.vms.birth import Means
from novacron.control.vms.connect import Connector, groups_named
from novacron.errors import InvalidInput, NoRoom, NotFound, StateConflict
from novacron.model.machine import NetworkKind, Nic
from novacron.model.vm import Desired, Vm, VmSpec, state_of
from novacron.wire.rest.vms import NicIn, NicUpdate


class NicService:
    """Attach, change, detach. Each write takes its turn: addresses are given and groups named one at a time."""

    def __init__(
        self,
        records: Records,
        room: Room,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._random_bytes = random_bytes

    async def attach(self, ref: str, asked: NicIn, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """One more card; a machine that runs gets it as it runs (202).

        :raise NotFound, PreconditionFailed. :raise StateConflict, Busy: nothing of it can be changed now.
        :raise InvalidInput: what it names is not there. :raise Conflict: no slot is left, or its MAC or address taken.
        :raise NoRoom: the network is full, or its node does not reach it.
        """
        ask = self._ask(by)
        means = Means(self._records.new_id, lambda: self._random_bytes(3), by, ask.now)

        def change(vm: Vm) -> Vm:
            verbs.check_free(vm, "attach a network card to")
            others = [stored.record for stored in self._records.all(VMS)]
            nic = Connector(self._records, others).joined(birth.nic_of(asked, means), asked)
            nic = msgspec.structs.replace(nic, slot=hardware.free_nic_slot(vm))
            spec = msgspec.structs.replace(vm.spec, nics=(*vm.spec.nics, nic))
            birth.check_macs(spec, [other for other in others if other.id != vm.id])
            self._check_reach(vm, spec)
            return hardware.wish(vm, spec, ask)

        return await self._write(ref, held, once, change)

    async def detach(self, ref: str, nic: str, by: str, held: frozenset[str] | None) -> Outcome:
        """One card less; a machine that runs loses it as it runs (202). Its addresses are free once it is gone.

        :raise NotFound, PreconditionFailed. :raise StateConflict, Busy: nothing of it can be changed now.
        """
        ask = self._ask(by)

        def change(vm: Vm) -> Vm:
            verbs.check_free(vm, "detach a network card from")
            found = _card(vm, nic)
            kept = tuple(one for one in vm.spec.nics if one is not found)
            return hardware.wish(vm, msgspec.structs.replace(vm.spec, nics=kept), ask)

        return await self._write(ref, held, None, change)

    async def update(self, ref: str, nic: str, asked: NicUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what may pass a card, also while it runs or moves.

        :raise NotFound, PreconditionFailed. :raise StateConflict: the VM is being deleted.
        :raise InvalidInput: the card is on no overlay network, or there is no such group.
        """

        def change(vm: Vm) -> Vm:
            if vm.desired is Desired.DELETED:
                raise StateConflict.of(f"VM {vm.name}", state_of(vm).value, ("not being deleted",), "change a card of")
            found = _card(vm, nic)
            if found.network is not NetworkKind.OVERLAY:
                raise InvalidInput.field("nic", "is on no overlay network: nothing is filtered there", "name another")
            wanted = asked.model_dump(exclude_none=True)
            if asked.security_groups is not None:
                ids = groups_named(self._records, asked.security_groups, "security_groups")
                wanted["security_groups"] = ids
            new = msgspec.structs.replace(found, **wanted)
            if new == found:
                return vm
            booted = _with_card(vm.booted, new) if vm.booted else None
            spec = _with_card(vm.spec, new)
            return msgspec.structs.replace(vm, spec=spec, booted=booted, updated_at=self._clock.wall())

        return await self._write(ref, held, None, change)

    async def _write(
        self, ref: str, held: frozenset[str] | None, once: Once | None, change: Callable[[Vm], Vm]
    ) -> Outcome:
        async with self._room.turn():
            written = Change(self._records, VMS, ref, held, once, self._room.ticket)
            return await written.write(change, under_way=lambda vm: vm.task is not None)

    def _check_reach(self, vm: Vm, spec: VmSpec) -> None:
        """Whether its node reaches the networks its cards are on. :raise NoRoom"""
        mine = next((one for one in self._room.candidates() if one.node.id == vm.node_id), None)
        need = birth.need_of(spec, "")
        refusals = [ask(need, mine, self._room.limits) for ask in (connected, overlaid)] if mine else []
        for reason in refusals:
            if reason is not None:
                raise NoRoom(f"{vm.name} cannot have that card where it is: {reason.message}", [reason])

    def _ask(self, by: str) -> Ask:
        return Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall())


def _card(vm: Vm, nic_id: str) -> Nic:
    for nic in vm.spec.nics:
        if nic.id == nic_id:
            return nic
    raise NotFound(f"VM {vm.name} has no network card {nic_id!r}")


def _with_card(spec: VmSpec, new: Nic) -> VmSpec:
    """What may pass it alone is replaced; where it is plugged in stays."""
    told: Sequence[Nic] = [
        msgspec.structs.replace(nic, security_groups=new.security_groups, anti_spoofing=new.anti_spoofing)
        if nic.id == new.id
        else nic
        for nic in spec.nics
    ]
    return msgspec.structs.replace(spec, nics=tuple(told))
