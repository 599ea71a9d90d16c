"""Decides what requests about VMs mean and records it; the reconciler then has it done."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.named import named
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools import quota
from novacron.control.pools.reach import disk_needs, needs_of
from novacron.control.promises import holds_room
from novacron.control.room import Room
from novacron.control.scheduler.filters import roomy
from novacron.control.scheduler.snapshot import Need
from novacron.control.store.kinds import IMAGES, NODES, VMS
from novacron.control.store.records import Records, Write
from novacron.control.store.shelf import Stored
from novacron.control.vms import asked as verbs
from novacron.control.vms import birth, boot_order, hardware, media
from novacron.control.vms.admitting import Admits, takes_more
from novacron.control.vms.asked import Ask
from novacron.control.vms.birth import Means
from novacron.control.vms.connect import Connector, with_macs_of
from novacron.control.vms.drives import Drive, Drives
from novacron.control.vms.macs import Macs
from novacron.control.vms.placing import PlacementPlan, Placing, need_of
from novacron.control.vms.turns import Batch, record_born, status_of_birth
from novacron.errors import NoRoom, Reason
from novacron.model.vm import Vm, VmSpec, running_spec
from novacron.wire.agent import Console, ConsoleText
from novacron.wire.rest.vms import StopRequest, VmCreate, VmUpdate

CONSOLE_DEADLINE_S = 10.0
MAX_CONSOLE_BYTES = 1 << 20

HARDWARE = ("vcpus", "memory_mib", "max_vcpus", "max_memory_mib", "tpm", "secure_boot", "ha")

Verb = Callable[[Vm, Ask], Vm | None]


class VmService:
    """Requests about VMs. Everything but the console log is answered from the records alone."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        room: Room,
        clock: Clock,
        pool_id: str,
        admission: Admits,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._records = records
        self._agents = agents
        self._room = room
        self._clock = clock
        self._pool_id = pool_id
        self._admission = admission
        self._random_bytes = random_bytes

    async def create(self, asked: VmCreate, by: str, once: Once) -> Outcome:
        """Place it and record it; a running one is then being created (202), another one is made at its start (201).

        :raise InvalidInput, StateConflict: it does not go with its image.
        :raise NotFound: no such image or node, named as a field.
        :raise NameTaken, Conflict: its name or a MAC address belongs to another.
        :raise NoRoom: no node can take it, with a reason for each; or a quota does not allow its disks; or no room
            would be left for guarded VMs, and the setting is to refuse that.
        """
        (stored,) = await self.create_many([asked], by, once, lambda vms: vms[0])
        return Outcome(stored, status_of_birth(stored.record), once.warnings)

    async def create_many(self, asked: Sequence[VmCreate], by: str, once: Once, batch: Batch) -> list[Stored[Vm]]:
        """As `create`, for all of them or none. batch: what a repeat under the same key is answered from."""
        means = Means(self._records.new_id, Macs(self._records, self._random_bytes).new, by, self._clock.wall())

        def births() -> tuple[list[Vm], list[Write]]:
            born, volumes = self._births(asked, means)
            once.warnings = self._admission.judge(born)
            return born, volumes

        return await record_born(self._records, self._room, once, births, batch)

    def _births(self, asked: Sequence[VmCreate], means: Means) -> tuple[list[Vm], list[Write]]:
        """Their records, each placed with those before it in mind, and what to write of their volumes."""
        slots = self._room.free_slots()
        placing = Placing(self._room)
        born: list[Vm] = []
        volumes: list[Write] = []
        drives = Drives(self._records, self._pool_id, means.new_id, means.now)
        connector = Connector(self._records)
        for one in asked:
            spec, disks = self._prepared(one, means, drives, connector)
            birth.check_macs(spec, [*with_macs_of(self._records, spec), *born])
            need = self._need(one, spec, disks)
            node_id = placing.place(one.name, need)
            vm = birth.newborn(one, spec, means, node_id=node_id, slot=next(slots))
            placing.promise(need, node_id, runs=holds_room(vm))
            born.append(vm)
            volumes += drives.given(vm, disks, with_vm=True)
        quota.check(self._records, drives.made)
        return born, volumes

    def foresee(self, asked: VmCreate, by: str) -> PlacementPlan:
        """Where it would go if it were made now, and why not elsewhere. Changes nothing; raises as `create`, but for
        nodes that cannot take it: the plan says those.
        """
        means = Means(self._records.new_id, Macs(self._records, self._random_bytes).new, by, self._clock.wall())
        drives = Drives(self._records, self._pool_id, means.new_id, means.now)
        spec, disks = self._prepared(asked, means, drives, Connector(self._records))
        birth.check_macs(spec, with_macs_of(self._records, spec))
        quota.check(self._records, drives.made)
        return Placing(self._room).plan(asked.name, self._need(asked, spec, disks))

    def placement(self, ref: str) -> PlacementPlan:
        """Where it could be started now, and why not elsewhere. Changes nothing. :raise NotFound"""
        vm = self._records.find(VMS, ref).record
        return Placing(self._room).plan(vm.name, need_of(self._records, vm, self._pool_id), vm)

    def _prepared(
        self, asked: VmCreate, means: Means, drives: Drives, connector: Connector
    ) -> tuple[VmSpec, Sequence[Drive]]:
        """A new VM complete but for its node. Its image cannot be deleted in this turn."""
        image = named(self._records, IMAGES, asked.image, "image").record
        boot_order.check_born(asked)
        disks = drives.born(asked, image)
        spec = birth.spec_of(asked, image, means, [drive.disk for drive in disks])
        spec = connector.born(spec, asked.nics)
        return msgspec.structs.replace(spec, media=media.born(self._records, asked, image)), disks

    def _need(self, asked: VmCreate, spec: VmSpec, disks: Sequence[Drive]) -> Need:
        """What it asks of a node."""
        return birth.need_of(
            spec,
            self._pool_id,
            named(self._records, NODES, asked.node, "node").record.id if asked.node else "",
            needs_of(self._records, spec.disks),
            labels=asked.labels,
            wishes=birth.wishes_of(asked.placement),
            disks=disk_needs(self._records, (drive.volume for drive in disks if drive.before is None)),
        )

    async def update(self, ref: str, asked: VmUpdate, by: str, held: frozenset[str] | None) -> Outcome:
        """Change what was named. Hardware may change at any time: what runs is adjusted as far as it can be (202).

        :raise NotFound, NameTaken, PreconditionFailed
        :raise StateConflict: it is being deleted. :raise Busy: a migration holds it.
        :raise NoRoom: it runs or is to run, and its node has too little left for what it is to have more; or no room
            would be left for guarded VMs, and the setting is to refuse that.
        """
        named = asked.model_dump(exclude_none=True)
        if asked.placement is not None:
            named["placement"] = birth.wishes_of(asked.placement)
        if asked.ha is not None:
            named["ha"] = birth.protection_of(asked.ha)
        wanted = {field: named.pop(field) for field in HARDWARE if field in named}
        ask, warned = self._ask(by), list[Reason]()

        def change(vm: Vm) -> Vm:
            warned.clear()
            new = msgspec.structs.replace(vm, **named)
            if wanted:
                verbs.check_free(vm, "change the hardware of")
                media.check_memory(vm.spec, asked.memory_mib)
                new = hardware.wish(new, msgspec.structs.replace(vm.spec, **wanted), ask)
                self._check_growth(vm, new)
                warned.extend(self._admission.judge([new] if takes_more(vm, new) else []))
            return vm if new == vm else msgspec.structs.replace(new, updated_at=ask.now)

        if not {"vcpus", "memory_mib", "ha"} & wanted.keys():
            return await Change(self._records, VMS, ref, held).write(change, under_way=_under_way)
        async with self._room.turn():
            outcome = await Change(self._records, VMS, ref, held, None, self._room.ticket).write(change, _under_way)
        return Outcome(outcome.stored, outcome.status, tuple(warned))

    async def delete(self, ref: str, by: str, held: frozenset[str] | None, *, force: bool) -> Outcome:
        """Have it removed from its node with its disks, then its record. Stopped ones only, unless forced.

        :raise NotFound, StateConflict, Busy, PreconditionFailed
        """
        return await self._act(ref, verbs.delete, self._ask(by, force=force), held, None)

    async def start(self, ref: str, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NoRoom: its node has too little memory or CPU left; or no room would be left for guarded VMs, and the
            setting is to refuse that.
        :raise NotFound, StateConflict, Busy
        """
        ask = self._ask(by)

        def begin(vm: Vm) -> Vm | None:
            new = verbs.start(vm, ask)
            if new is not None and not holds_room(vm):
                self._check_room(vm)
                once.warnings = self._admission.judge([new])
            return new

        async with self._room.turn():
            change = Change(self._records, VMS, ref, held, once, self._room.ticket)
            outcome = await change.write(begin, under_way=_under_way)
        return Outcome(outcome.stored, outcome.status, once.warnings)

    async def stop(self, ref: str, how: StopRequest, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NotFound, StateConflict, Busy, PreconditionFailed"""
        return await self._act(ref, verbs.stop, self._ask(by, force=how.force, deadline_s=how.deadline_s), held, once)

    async def restart(self, ref: str, how: StopRequest, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NotFound, StateConflict, Busy, PreconditionFailed"""
        ask = self._ask(by, force=how.force, deadline_s=how.deadline_s)
        return await self._act(ref, verbs.restart, ask, held, once)

    async def pause(self, ref: str, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NotFound, StateConflict, Busy, PreconditionFailed"""
        return await self._act(ref, verbs.pause, self._ask(by), held, once)

    async def park(self, ref: str, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NotFound, StateConflict, Unsupported, Busy, PreconditionFailed"""
        return await self._act(ref, verbs.park, self._ask(by), held, once)

    async def resume(self, ref: str, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """:raise NotFound, StateConflict, Busy, PreconditionFailed"""
        return await self._act(ref, verbs.resume, self._ask(by), held, once)

    async def console(self, ref: str, max_bytes: int) -> tuple[Vm, ConsoleText]:
        """The last bytes of its serial console, from its node.

        :raise NotFound, NodeUnreachable, DeadlineExceeded
        """
        vm = self._records.find(VMS, ref).record
        verb = Console(vm_id=vm.id, generation=vm.generation, max_bytes=max_bytes)
        text = await self._agents.call(vm.node_id, verb, ConsoleText, deadline_s=CONSOLE_DEADLINE_S)
        return vm, text

    # -- parts ---------------------------------------------------------------------------------------------

    async def _act(self, ref: str, verb: Verb, ask: Ask, held: frozenset[str] | None, once: Once | None) -> Outcome:
        change = Change(self._records, VMS, ref, held, once)
        return await change.write(lambda vm: verb(vm, ask), under_way=_under_way)

    def _ask(self, by: str, *, force: bool = False, deadline_s: float = 60.0) -> Ask:
        return Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall(), force=force, deadline_s=deadline_s)

    def _check_room(self, vm: Vm) -> None:
        mine = self._room.candidate(vm.node_id)
        need = birth.need_of(vm.spec, "")
        reason = roomy(need, mine, self._room.limits) if mine else None
        if reason is not None:
            raise NoRoom(f"cannot start {vm.name}: {reason.message}", [reason])

    def _check_growth(self, vm: Vm, new: Vm) -> None:
        """Whether its node has what a machine that holds room is to have more. :raise NoRoom"""
        runs = running_spec(vm)
        more = Need(
            memory_mib=max(0, new.spec.memory_mib - max(vm.spec.memory_mib, runs.memory_mib)),
            vcpus=max(0, new.spec.vcpus - max(vm.spec.vcpus, runs.vcpus)),
        )
        mine = self._room.candidate(vm.node_id)
        if mine is None or not holds_room(vm) or not (more.memory_mib or more.vcpus):
            return
        reason = roomy(more, mine, self._room.limits)
        if reason is not None:
            raise NoRoom(f"{vm.name} cannot grow where it is: {reason.message}", [reason])


def _under_way(vm: Vm) -> bool:
    return vm.task is not None
