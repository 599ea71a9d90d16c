"""New VMs recorded, all or none, in the turn in which room, addresses and names are promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from novacron.control.once import Once
from novacron.control.room import Room
from novacron.control.store.kinds import VMS
from novacron.control.store.records import WRITE_TRIES, Records, Write, create
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed
from novacron.model.vm import Vm

Births = Callable[[], tuple[list[Vm], list[Write]]]
"""Decides from the records as they are: the VMs, and what to write of their volumes."""

Batch = Callable[[Sequence[Vm]], Any]
"""New VMs → the record that answers for them."""


async def record_born(records: Records, room: Room, once: Once, births: Births, batch: Batch) -> list[Stored[Vm]]:
    """Decide and write; decided again when others wrote meanwhile. batch: what a repeat under the key answers from.

    :raise NameTaken: of one of them. :raise CompareFailed: others kept writing, or the key was used meanwhile.
    """
    for _ in range(WRITE_TRIES):
        async with room.turn():
            ticket = await room.ticket()
            vms, volumes = births()
            note = once.note(batch(vms), status_of_birth(vms[0]))
            try:
                revision = await records.commit(*(create(VMS, vm) for vm in vms), *volumes, ticket, *note)
            except CompareFailed as lost:
                if await once.is_used():
                    raise
                for vm in vms:
                    await records.refuse_taken_name(VMS, None, vm, lost)
                await records.refresh()
                continue
            return [Stored(vm, revision) for vm in vms]
    raise CompareFailed("others kept changing the room that is left: try again")


def status_of_birth(vm: Vm) -> int:
    """What to answer: 202 while it is being made, 201 when it is to stay off."""
    return 202 if vm.task else 201
