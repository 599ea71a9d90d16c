"""Performs the steps in which disks are copied: to the node a machine goes to, or into other pools of its own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import msgspec

from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.migrations.bandwidth import BandwidthTeller
from novacron.control.migrations.decide import STREAMED_FROM
from novacron.control.migrations.disks import relocated
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.progress import ProgressWriter
from novacron.control.networks.states import wiring_of
from novacron.control.pools.reach import specs_of
from novacron.control.store.kinds import IMAGES, NODES, POOLS, VMS
from novacron.control.store.records import Records
from novacron.control.vms.decide import machine_spec
from novacron.errors import MigrationFailed
from novacron.model.machine import MachineReport, MachineSpec
from novacron.model.migration import COPY_LOST, Migration, MigrationKind
from novacron.model.migration_steps import Step, copy_kept_s
from novacron.model.node import COPIES
from novacron.model.vm import Vm, VmSpec, running_spec, status_of
from novacron.wire import moving
from novacron.wire.belongings import Belongings, PackBelongings, UnpackBelongings

SLACK_S = 30.0
VERB_DEADLINE_S = 60.0
"""Closing a disk flushes it."""


class Reception(Protocol):
    """Where the target of a migration listens; anew: with disks that hold nothing yet."""

    def __call__(self, migration: Migration, *, anew: bool = False) -> Awaitable[moving.ReceptionAt]: ...


class Copying:
    """Each method performs a step and writes it down."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        journal: Journal,
        progress: ProgressWriter,
        bandwidth: BandwidthTeller,
        distribution: Distribution,
        reception: Reception,
    ) -> None:
        self._records = records
        self._agents = agents
        self._journal = journal
        self._progress = progress
        self._bandwidth = bandwidth
        self._distribution = distribution
        self._reception = reception

    async def copy_disks(self, migration: Migration, step: Step) -> None:
        """What came with an earlier migration is gone on with, if its source knows what that lacks."""
        try:
            await self._copy(migration, step, (await self._reception(migration)).disks)
        except MigrationFailed as failed:
            if not any(reason.code == COPY_LOST for reason in failed.reasons):
                raise
            note = f"what its target had of its disks was of no use ({failed.reasons[0].message}): copied anew"
            await self._journal.note(migration.id, note)
            await self._copy(migration, step, (await self._reception(migration, anew=True)).disks)

    async def _copy(self, migration: Migration, step: Step, to: moving.DisksAt | None) -> None:
        if to is None:
            raise MigrationFailed("the target's agent takes in no disks: renew it")
        vm = self._records.find(VMS, migration.vm_id).record
        verb = moving.CopyDisks(
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
            copied = await self._agents.call(migration.source_node, verb, moving.DisksCopied, deadline_s=deadline_s)
        figures = msgspec.structs.replace(migration.figures, disk_bytes=copied.copied_bytes)
        note = f"its disks went on from what came with migration {to.resumes}" if to.resumed else ""
        await self._journal.did(migration.id, step, figures=figures, note=note)

    async def copy_here(self, migration: Migration, step: Step) -> None:
        vm = self._records.find(VMS, migration.vm_id).record
        verb = moving.CopyHere(
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
            copied = await self._agents.call(migration.source_node, verb, moving.DisksCopied, deadline_s=deadline_s)
        figures = msgspec.structs.replace(migration.figures, disk_bytes=copied.copied_bytes)
        await self._journal.did(migration.id, step, figures=figures)

    async def pivot(self, migration: Migration, step: Step) -> None:
        vm = self._records.find(VMS, migration.vm_id).record
        wanted = told(self._records, vm, relocated(running_spec(vm), migration.disks))
        verb = moving.Pivot(vm_id=vm.id, generation=vm.generation, migration_id=migration.id, wanted=wanted)
        await self._agents.call(migration.source_node, verb, MachineReport, deadline_s=VERB_DEADLINE_S)
        await self._journal.hand_over(migration.id, step)

    async def tidy(self, migration: Migration, step: Step) -> None:
        """The record says the new places by now."""
        vm = self._records.find(VMS, migration.vm_id).record
        verb = moving.Tidy(
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
        verb = moving.Settle(vm_id=vm.id, generation=vm.generation, migration_id=migration.id)
        await self._agents.call(migration.target_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        await self._journal.did(migration.id, step)


def told(records: Records, vm: Vm, spec: VmSpec) -> MachineSpec:
    """The machine with its disks where `spec` has them, as a node is told of it."""
    image = records.find(IMAGES, vm.spec.image_id).record
    pools, wiring = specs_of(records, spec.disks), wiring_of(records, spec.nics)
    return machine_spec(vm, image, spec, wiring=wiring, pools=pools)


def kept_s(records: Records, migration: Migration) -> float:
    """How long its target may keep what came of its disks. In a pool that nodes share it would be in others' way; and
    what the target lacks is known to the QEMU alone that ran all the while, so it must run yet.
    """
    vm = records.get(VMS, migration.vm_id)
    runs = vm is not None and status_of(vm.record) in STREAMED_FROM
    pools = (records.get(POOLS, move.to_pool_id) for move in migration.disks)
    shared = any(pool is None or pool.record.shared for pool in pools)
    return copy_kept_s(migration) if runs and not shared and goes_on(records, migration) else 0.0


def goes_on(records: Records, migration: Migration) -> bool:
    """Whether its source's agent can go on with a copy; an older one would take what is there for blank."""
    source = records.get(NODES, migration.source_node)
    return source is not None and source.record.facts is not None and COPIES in source.record.facts.abilities


def volumes_of(migration: Migration) -> tuple[str, ...]:
    """Those that are copied."""
    return tuple(disk.volume_id for disk in migration.disks)
