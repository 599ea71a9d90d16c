"""Brings VMs to what is desired: reads the record, asks `decide.next_action`, has the node do it, records the end.

One driver a VM, so verbs of one machine never meet. A newer task interrupts the work on an older one: a forced stop
does not wait for a graceful one. Everything is in the record, so a restarted server continues where this one died.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.errands import Errands
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.networks.states import wiring_of
from novacron.control.orders import epoch_of, last_ended
from novacron.control.pools.reach import specs_of
from novacron.control.store.kinds import IMAGES, VMS
from novacron.control.store.records import Records, Seen, remove
from novacron.control.vms import decide, farewells, hardware
from novacron.control.vms.decide import Action
from novacron.control.vms.drives import check_ready, parting
from novacron.errors import PASSING, CompareFailed, NotFound, NovaCronError
from novacron.model.image import Image
from novacron.model.machine import MachineReport, MachineSpec, StopMode
from novacron.model.vm import Vm, VmSpec
from novacron.wire import agent as wire

START_DEADLINE_S = 120.0
VERB_DEADLINE_S = 30.0
ADJUST_DEADLINE_S = 60.0  # guests take their time to let go of a device
REMOVE_DEADLINE_S = 120.0  # storage goes on counting a machine that was killed for a while
GRACE_S = 15.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0

_Change = Callable[[Vm], Vm]


class Reconciler:
    """`run` until cancelled; the work of each VM is a task of its own."""

    def __init__(
        self, records: Records, agents: Agents, clock: Clock, distribution: Distribution | None = None
    ) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._distribution = distribution or Distribution(records, agents)
        self._errands = Errands[str]("reconcile", self._again)  # by VM, each for the task of this id
        self._log = structlog.get_logger("reconciler")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            async with self._errands:
                async for stored in breathing(self._records.all(VMS)):
                    self._again(stored.record.id)
                await asyncio.Event().wait()
        finally:
            stop()

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is VMS and change.now is not None:
                self._consider(change.now)

    def _consider(self, vm: Vm) -> None:
        task_id = vm.task.id if vm.task else ""
        if (errand := self._errands.under_way(vm.id)) is not None:
            if errand.mark != task_id and task_id:
                self._errands.call_off(vm.id)  # its end calls us again
        elif decide.next_action(vm) is not None:
            self._errands.begin(vm.id, task_id, lambda: self._work(vm.id, task_id))

    def _again(self, vm_id: str) -> None:
        stored = self._records.get(VMS, vm_id)
        if stored is not None:
            self._consider(stored.record)

    async def _work(self, vm_id: str, task_id: str) -> None:
        """Act until the task is over or another has replaced it."""
        retry_s = FIRST_RETRY_S
        while (stored := self._records.get(VMS, vm_id)) is not None:
            vm = stored.record
            action = decide.next_action(vm)
            if action is None or vm.task is None or vm.task.id != task_id:
                return
            try:
                await self._attempt(vm, task_id, action)
                retry_s = FIRST_RETRY_S
            except PASSING as passing:
                self._log.info("will try again", vm=vm.name, action=type(action).__name__, why=passing.message)
                await self._clock.sleep(retry_s)
                retry_s = min(retry_s * 2, LAST_RETRY_S)
            except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave a task undone for ever)
                self._log.exception("work on a VM broke; trying again", vm=vm.name)
                await self._clock.sleep(LAST_RETRY_S)

    async def _attempt(self, vm: Vm, task_id: str, action: Action) -> None:
        try:
            await self._act(vm, task_id, action)
        except PASSING:
            raise
        except NovaCronError as error:
            refusal = error
            self._log.warning("task failed", vm=vm.name, action=type(action).__name__, why=error.message)
            await self._change(vm.id, lambda now_vm: decide.task_failed(now_vm, task_id, refusal, self._now()))

    async def _act(self, vm: Vm, task_id: str, action: Action) -> None:
        match action:
            case decide.Done():
                await self._change(vm.id, lambda now_vm: decide.task_done(now_vm, task_id, self._now()))
            case decide.Halfway():
                await self._change(vm.id, _halved)
            case decide.Forget():
                await self._forget(vm.id)
            case decide.Remove():
                volumes, _ = parting(self._records, vm)
                for farewell in farewells.of(self._records, vm, volumes):
                    await self._agents.call(vm.node_id, farewell, type(None), deadline_s=REMOVE_DEADLINE_S)
                verb = wire.Remove(vm_id=vm.id, generation=vm.generation, volumes=volumes)
                await self._agents.call(vm.node_id, verb, type(None), deadline_s=REMOVE_DEADLINE_S)
                await self._forget(vm.id)
            case decide.Start():
                check_ready(self._records, vm, starting=True)
                await self._change(vm.id, decide.booting)
                await self._have_done(self._records.find(VMS, vm.id).record, action)
            case decide.Adjust():
                await self._adjust(vm, task_id)
            case _:
                await self._have_done(vm, action)

    async def _have_done(self, vm: Vm, action: Action) -> None:
        verb, deadline_s = self._verb(vm, action)
        if isinstance(verb, wire.Start):
            await self._distribution.bring_all(vm.node_id, verb.spec)
        report = await self._agents.call(vm.node_id, verb, MachineReport, deadline_s=deadline_s)

        def see(now_vm: Vm) -> Vm:
            # A report that came in on its own since we asked is newer than this answer.
            unspoken = now_vm.observed == vm.observed and decide.speaks_for(now_vm, vm.node_id, report)
            return decide.observed(now_vm, report, self._now()) if unspoken else now_vm

        await self._change(vm.id, see)

    async def _adjust(self, vm: Vm, task_id: str) -> None:
        """Have what runs made as the spec says. The node's answer says how far that went."""
        wished = vm.spec
        check_ready(self._records, vm, starting=False)
        told = self._told(vm, wished)
        await self._distribution.bring_all(vm.node_id, told)
        answer = await self._agents.call(
            vm.node_id, wire.Adjust(spec=told), wire.Adjusted, deadline_s=ADJUST_DEADLINE_S
        )

        def write(now_vm: Vm) -> Vm:
            if not decide.speaks_for(now_vm, vm.node_id, answer.report):
                return now_vm
            new = hardware.adjusted(now_vm, task_id, (wished, told), answer, self._now())
            unspoken = now_vm.observed == vm.observed  # else a report that came since is newer
            return decide.observed(new, answer.report, self._now()) if unspoken else new

        await self._change(vm.id, write)

    def _told(self, vm: Vm, spec: VmSpec) -> MachineSpec:
        wiring, pools = wiring_of(self._records, spec.nics), specs_of(self._records, spec.disks)
        return decide.machine_spec(vm, self._image(vm), spec, wiring=wiring, pools=pools)

    def _image(self, vm: Vm) -> Image:
        image = self._records.get(IMAGES, vm.spec.image_id)
        if image is None:
            raise NotFound(f"the image of {vm.name} ({vm.spec.image_id}) is gone")
        return image.record

    def _verb(self, vm: Vm, action: Action) -> tuple[msgspec.Struct, float]:
        match action:
            case decide.Start():
                spec, epoch = self._told(vm, vm.booted or vm.spec), epoch_of(self._records, vm.node_id)
                return wire.Start(spec=spec, epoch=epoch, over=last_ended(self._records, vm.id)), START_DEADLINE_S
            case decide.Stop(mode, deadline_s):
                wait_s = deadline_s if mode is StopMode.GRACEFUL else 0.0
                stop = wire.Stop(vm_id=vm.id, generation=vm.generation, mode=mode, deadline_s=wait_s)
                return stop, wait_s + GRACE_S
            case decide.Park():
                return wire.Park(vm_id=vm.id, generation=vm.generation), START_DEADLINE_S
            case decide.Pause():
                return wire.Pause(vm_id=vm.id, generation=vm.generation), VERB_DEADLINE_S
            case _:
                return wire.Resume(vm_id=vm.id, generation=vm.generation), VERB_DEADLINE_S

    async def _forget(self, vm_id: str) -> None:
        while (stored := self._records.get(VMS, vm_id)) is not None:
            try:
                _, volumes = parting(self._records, stored.record)
                snapshots = farewells.ends(self._records, stored.record)
                await self._records.commit(remove(VMS, stored), *volumes, *snapshots)
            except CompareFailed:
                await self._records.refresh()

    async def _change(self, vm_id: str, change: _Change) -> None:
        if self._records.get(VMS, vm_id) is not None:
            await self._records.change(VMS, vm_id, change)

    def _now(self) -> datetime.datetime:
        return self._clock.wall()


def _halved(vm: Vm) -> Vm:
    return msgspec.structs.replace(vm, task=msgspec.structs.replace(vm.task, halted=True) if vm.task else None)
