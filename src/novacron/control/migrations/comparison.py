"""Compares the disks that were copied, once the machine runs on its target and before its source's copies are deleted.

Source and target give digests of the same blocks: some, drawn where there is data, or all. What the target's guest has
written since is left out; a block that differs is read once more before it is called different. The guest is never
waited for, and never waits.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.errors import NovaCronError
from novacron.model.blocks import BLOCK_BYTES, MAX_BLOCKS, BlockDigests, Sample, differing
from novacron.model.migration import DiskMove, Migration, MigrationKind, VerifyDisks
from novacron.model.verdict import DISKS, Check, Outcome
from novacron.model.vm import Vm
from novacron.wire import moving

SAMPLED_BLOCKS = 128
ASK_DEADLINE_S = 60.0
END_DEADLINE_S = 5.0
SAMPLED_WITHIN_S = 30.0
FULL_WITHIN_S = 4 * 3600.0
DISCARD = "novacron migration discard-copies"


class Compared(msgspec.Struct, frozen=True):
    """Of one disk: blocks looked at, those of them that the guest had written by then, and those that differ.

    at: what it is on its source.
    """

    looked: int = 0
    written: int = 0
    wrong: tuple[int, ...] = ()
    at: str = ""


def watched(migration: Migration) -> tuple[str, ...]:
    """Volumes of which the target is to note what is written from its start on."""
    boots, none = migration.kind is MigrationKind.COLD, migration.goals.verify_disks is VerifyDisks.NONE
    return () if boots or none else tuple(disk.volume_id for disk in migration.disks)


class Comparison:
    """`check` never raises for what a node answers, or does not."""

    def __init__(self, agents: Agents, clock: Clock) -> None:
        self._agents = agents
        self._clock = clock

    async def check(self, migration: Migration, vm: Vm, source: str) -> Check:
        """Within SAMPLED_WITHIN_S, or, all of them, FULL_WITHIN_S."""
        if not watched(migration):
            return Check(name=DISKS, outcome=Outcome.NOT_CHECKED, evidence=_why_not(migration))
        began_s, found, why = self._clock.monotonic_s(), dict[str, Compared](), ""
        full = migration.goals.verify_disks is VerifyDisks.FULL
        try:
            async with asyncio.timeout(FULL_WITHIN_S if full else SAMPLED_WITHIN_S):
                for disk in migration.disks:
                    compare = self._all_of if full else self._some_of
                    found[disk.volume_id] = await compare(migration, vm, disk)
        except NovaCronError as error:
            why = error.message
        except TimeoutError:
            why = "it took too long"
        judged = judge(migration, found, why, source)
        return msgspec.structs.replace(judged, took_ms=(self._clock.monotonic_s() - began_s) * 1e3)

    async def _some_of(self, migration: Migration, vm: Vm, disk: DiskMove) -> Compared:
        sample = Sample(count=SAMPLED_BLOCKS, seed=f"{migration.id}/{disk.volume_id}")
        verb = moving.ReadBlocks(
            vm_id=vm.id,
            generation=vm.generation,
            migration_id=migration.id,
            volume_id=disk.volume_id,
            sample=sample,
        )
        here = await self._ask(migration.source_node, verb)
        return await self._beside(migration, verb, here)

    async def _all_of(self, migration: Migration, vm: Vm, disk: DiskMove) -> Compared:
        total, found = -(-disk.size_bytes // BLOCK_BYTES), Compared()
        for first in range(0, total, MAX_BLOCKS):
            verb = moving.ReadBlocks(
                vm_id=vm.id,
                generation=vm.generation,
                migration_id=migration.id,
                volume_id=disk.volume_id,
                blocks=tuple(range(first, min(first + MAX_BLOCKS, total))),
            )
            part = await self._beside(migration, verb, await self._ask(migration.source_node, verb))
            looked, written = found.looked + part.looked, found.written + part.written
            found = Compared(looked, written, found.wrong + part.wrong, part.at)
        return found

    async def _beside(self, migration: Migration, verb: moving.ReadBlocks, here: BlockDigests) -> Compared:
        """What the target has in the blocks that the source has told of."""
        asked = msgspec.structs.replace(verb, sample=None, blocks=here.blocks, written=True)
        there = await self._ask(migration.target_node, asked)
        written, wrong = len(there.written), differing(here, there)
        if wrong:  # a write that was under way has ended by now, and is told
            again = await self._ask(migration.target_node, msgspec.structs.replace(asked, blocks=wrong))
            written, wrong = written + len(again.written), differing(here, again)
        return Compared(len(here.blocks), written, wrong, here.at)

    async def end(self, migration: Migration, vm: Vm) -> None:
        """Once what was found is on the record: nothing need be noted any more. A target that is silent goes on."""
        for volume_id in watched(migration):
            verb = moving.ReadBlocks(
                vm_id=vm.id, generation=vm.generation, migration_id=migration.id, volume_id=volume_id, ends=True
            )
            with contextlib.suppress(NovaCronError):
                await self._agents.call(migration.target_node, verb, BlockDigests, deadline_s=END_DEADLINE_S)

    async def _ask(self, node_id: str, verb: moving.ReadBlocks) -> BlockDigests:
        return await self._agents.call(node_id, verb, BlockDigests, deadline_s=ASK_DEADLINE_S)


def judge(migration: Migration, found: dict[str, Compared], why: str, source: str) -> Check:
    """What was found, by volume; why: the reason why not all were compared to the end; source: that node's name."""
    wrong = {volume_id: one for volume_id, one in found.items() if one.wrong}
    if wrong:
        words = "; ".join(
            f"volume {volume_id} is not as it was on {source} in {len(one.wrong)} of {one.looked} blocks, from byte "
            f"{one.wrong[0] * BLOCK_BYTES} on"
            for volume_id, one in wrong.items()
        )
        return Check(name=DISKS, outcome=Outcome.FAILED, evidence=f"{words}; {_kept(migration, found, source)}")
    looked, written = sum(one.looked for one in found.values()), sum(one.written for one in found.values())
    counted = f"{looked - written} blocks of 64 KiB are alike on both sides ({migration.goals.verify_disks.value})"
    counted += f"; {written} were written since" if written else ""
    if why:
        words = f"its disks were not compared to the end: {why}"
        return Check(name=DISKS, outcome=Outcome.NOT_CHECKED, evidence=words)
    outcome = Outcome.PASSED if looked > written else Outcome.NOT_CHECKED
    return Check(name=DISKS, outcome=outcome, evidence=counted)


def _kept(migration: Migration, found: dict[str, Compared], source: str) -> str:
    """Where the source's copies are, and how they are deleted: nobody but a person may know that they are of no use."""
    places = ", ".join(one.at for one in found.values() if one.at)
    where = f" ({places})" if places else ""
    return f"all copies on {source} are kept{where}; once they are of no use: {DISCARD} {migration.id}"


def _why_not(migration: Migration) -> str:
    if not migration.disks:
        return "none were copied"
    if migration.kind is MigrationKind.COLD:
        return "its source's hypervisor has ended with its guest"
    return "verify_disks is none"
