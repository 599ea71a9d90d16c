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
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.control.vms import asked as verbs
from novacron.control.vms import birth, boot_order, hardware
from novacron.control.vms.asked import Ask
from novacron.control.vms.birth import Means
from novacron.control.vms.connect import Connector, groups_named, with_macs_of
from novacron.control.vms.macs import Macs
from novacron.errors import InvalidInput, NoRoom, NotFound, StateConflict
from novacron.model.machine import NetworkKind, Nic
from novacron.model.vm import Desired, Vm, VmSpec, state_of
from novacron.wire.rest.devices import NicIn, NicUpdate


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
        :raise InvalidInput: what it names is not there, or its boot order cannot be had. :raise Conflict: no slot is
        left, or its MAC or address taken.
        :raise NoRoom: the network is full, or its node does not reach it.
        """
        ask = self._ask(by)
        means = Means(self._records.new_id, Macs(self._records, self._random_bytes).new, by, ask.now)

        def change(vm: Vm) -> Vm:
            verbs.check_free(vm, "attach a network card to")
            _check_order(vm, asked.boot_order)
            nic = Connector(self._records).joined(birth.nic_of(asked, means), asked)
            nic = msgspec.structs.replace(nic, slot=hardware.free_nic_slot(vm))
            spec = msgspec.structs.replace(vm.spec, nics=(*vm.spec.nics, nic))
            birth.check_macs(spec, [other for other in with_macs_of(self._records, spec) if other.id != vm.id])
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

    async def update(self, ref: str, nic: str, asked: NicUpdate, by: str, held: frozenset[str] | None) -> Outcome:
        """Change what may pass a card, also while it runs or moves; or, from the next start on, when it is booted from.

        :raise NotFound, PreconditionFailed. :raise StateConflict: the VM is being deleted.
        :raise InvalidInput: the card is on no overlay network, there is no such group, or another device has that boot
        order. :raise Busy: a migration holds it, and its boot order is to change.
        """
        ask = self._ask(by)

        def change(vm: Vm) -> Vm:
            if vm.desired is Desired.DELETED:
                raise StateConflict.of(f"VM {vm.name}", state_of(vm).value, ("not being deleted",), "change a card of")
            found = _card(vm, nic)
            new = self._filtered(found, asked)
            if new != found:
                booted = _with_card(vm.booted, new) if vm.booted else None
                vm = msgspec.structs.replace(vm, spec=_with_card(vm.spec, new), booted=booted, updated_at=ask.now)
            return _ordered(vm, new, asked.boot_order, ask)

        return await self._write(ref, held, None, change)

    def _filtered(self, nic: Nic, asked: NicUpdate) -> Nic:
        """The card with what may pass it from now on. :raise InvalidInput: nothing is filtered there, no such group."""
        wanted = asked.model_dump(exclude_none=True, exclude={"boot_order"})
        if wanted and nic.network is not NetworkKind.OVERLAY:
            raise InvalidInput.field("nic", "is on no overlay network: nothing is filtered there", "name another")
        if asked.security_groups is not None:
            wanted["security_groups"] = groups_named(self._records, asked.security_groups, "security_groups")
        return msgspec.structs.replace(nic, **wanted)

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


def _check_order(vm: Vm, number: int) -> None:
    boot_order.check_card(vm.spec.machine, number)
    boot_order.check_free(vm.spec, number)


def _ordered(vm: Vm, nic: Nic, number: int | None, ask: Ask) -> Vm:
    """The record with that place in the starting order wished for. Errors: as for `NicService.update`."""
    if number is None or number == nic.boot_order:
        return vm
    verbs.check_free(vm, "change the boot order of")
    _check_order(vm, number)
    nics = tuple(msgspec.structs.replace(one, boot_order=number) if one.id == nic.id else one for one in vm.spec.nics)
    return hardware.wish(vm, msgspec.structs.replace(vm.spec, nics=nics), ask)


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
