"""Performs the steps in which disks are copied: to the node a machine goes to, or into other pools of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.migrations.bandwidth import BandwidthTeller
from novacron.control.migrations.disks import relocated
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.progress import ProgressWriter
from novacron.control.networks.states import wiring_of
from novacron.control.pools.reach import specs_of
from novacron.control.store.records import IMAGES, VMS, Records
from novacron.control.vms.decide import machine_spec
from novacron.errors import MigrationFailed
from novacron.model.machine import MachineReport, MachineSpec
from novacron.model.migration import Migration, MigrationKind, Step
from novacron.model.vm import Vm, VmSpec, running_spec
from novacron.wire import agent as wire
from novacron.wire.belongings import Belongings, PackBelongings, UnpackBelongings

SLACK_S = 30.0
VERB_DEADLINE_S = 60.0
"""Closing a disk flushes it."""


class Copying:
    """Each method performs a step and writes it down. reception: where the target of a migration listens."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        journal: Journal,
        progress: ProgressWriter,
        bandwidth: BandwidthTeller,
        distribution: Distribution,
        reception: Callable[[Migration], Awaitable[wire.ReceptionAt]],
    ) -> None:
        self._records = records
        self._agents = agents
        self._journal = journal
        self._progress = progress
        self._bandwidth = bandwidth
        self._distribution = distribution
        self._reception = reception

    async def copy_disks(self, migration: Migration, step: Step) -> None:
        vm, to = self._records.find(VMS, migration.vm_id).record, (await self._reception(migration)).disks
        if to is None:
            raise MigrationFailed("the target's agent takes in no disks: renew it")
        verb = wire.CopyDisks(
            vm_id=vm.id,
            generation=migration.generation,
            migration_id=migration.id,
            to=to,
            volumes=volumes_of(migration),
            spec=told(self._records, vm, running_spec(vm)),
            goals=migration.goals,
            at_rest=migration.at_rest,
        )
        deadline_s = migration.goals.finish_within_s + SLACK_S
        async with self._progress.of(migration.id), self._bandwidth.of(migration):
            copied = await self._agents.call(migration.source_node, verb, wire.DisksCopied, deadline_s=deadline_s)
        figures = msgspec.structs.replace(migration.figures, disk_bytes=copied.copied_bytes)
        await self._journal.did(migration.id, step, figures=figures)

    async def copy_here(self, migration: Migration, step: Step) -> None:
        vm = self._records.find(VMS, migration.vm_id).record
        verb = wire.CopyHere(
            vm_id=vm.id,
            generation=migration.generation,
            migration_id=migration.id,
            volumes=volumes_of(migration),
            spec=told(self._records, vm, running_spec(vm)),
            wanted=told(self._records, vm, relocated(running_spec(vm), migration.disks)),
            goals=migration.goals,
            at_rest=migration.at_rest,
        )
        await self._distribution.bring_all(migration.source_node, verb.wanted)
        deadline_s = migration.goals.finish_within_s + SLACK_S
        async with self._progress.of(migration.id), self._bandwidth.of(migration):
            copied = await self._agents.call(migration.source_node, verb, wire.DisksCopied, deadline_s=deadline_s)
        figures = msgspec.structs.replace(migration.figures, disk_bytes=copied.copied_bytes)
        await self._journal.did(migration.id, step, figures=figures)

    async def pivot(self, migration: Migration, step: Step) -> None:
        vm = self._records.find(VMS, migration.vm_id).record
        wanted = told(self._records, vm, relocated(running_spec(vm), migration.disks))
        verb = wire.Pivot(vm_id=vm.id, generation=vm.generation, migration_id=migration.id, wanted=wanted)
        await self._agents.call(migration.source_node, verb, MachineReport, deadline_s=VERB_DEADLINE_S)
        await self._journal.hand_over(migration.id, step)

    async def tidy(self, migration: Migration, step: Step) -> None:
        """The record says the new places by now."""
        vm = self._records.find(VMS, migration.vm_id).record
        verb = wire.Tidy(
            vm_id=vm.id,
            generation=vm.generation,
            migration_id=migration.id,
            volumes=volumes_of(migration),
            spec=told(self._records, vm, relocated(running_spec(vm), migration.disks, back=True)),
            wanted=told(self._records, vm, running_spec(vm)),
        )
        await self._agents.call(migration.source_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        await self._journal.did(migration.id, step)

    async def copy_belongings(self, migration: Migration, step: Step) -> None:
        """What is no disk, over the lines of both nodes; nothing of it is kept here. Memory brings its TPM's state."""
        pack = PackBelongings(
            vm_id=migration.vm_id,
            generation=migration.generation,
            migration_id=migration.id,
            with_tpm=migration.kind is MigrationKind.COLD,
        )
        packed = await self._agents.call(migration.source_node, pack, Belongings, deadline_s=VERB_DEADLINE_S)
        unpack = UnpackBelongings(
            vm_id=migration.vm_id,
            generation=migration.generation,
            migration_id=migration.id,
            files=packed.files,
        )
        await self._agents.call(migration.target_node, unpack, type(None), deadline_s=VERB_DEADLINE_S)
        await self._journal.departed(migration, step)

    async def settle(self, migration: Migration, step: Step) -> None:
        vm = self._records.find(VMS, migration.vm_id).record
        verb = wire.Settle(vm_id=vm.id, generation=vm.generation, migration_id=migration.id)
        await self._agents.call(migration.target_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        await self._journal.did(migration.id, step)


def told(records: Records, vm: Vm, spec: VmSpec) -> MachineSpec:
    """The machine with its disks where `spec` has them, as a node is told of it."""
    image = records.find(IMAGES, vm.spec.image_id).record
    pools, wiring = specs_of(records, spec.disks), wiring_of(records, spec.nics)
    return machine_spec(vm, image, spec, wiring=wiring, pools=pools)


def volumes_of(migration: Migration) -> tuple[str, ...]:
    """Those that are copied."""
    return tuple(disk.volume_id for disk in migration.disks)
