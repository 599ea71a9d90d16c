"""Isolation slots: the smallest that is free, whatever came and went since it was asked first."""

from __future__ import annotations

import datetime
import itertools
import random
from pathlib import Path

import pytest

from novacron.clock import SystemClock
from novacron.control import slots
from novacron.control.slots import Slots
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, remove
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import NoRoom
from novacron.model.vm import Desired, Vm, VmSpec

pytestmark = pytest.mark.anyio
NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


async def test_the_smallest_that_is_free_whatever_came_and_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    records = Records(store, SystemClock(), random.Random(1))
    await records.start()

    async def made(slot: int) -> Vm:
        vm = Vm(
            id=records.new_id(),
            name=f"vm-{slot}",
            spec=VmSpec(image_id=records.new_id()),
            desired=Desired.STOPPED,
            isolation_slot=slot,
            created_at=NOW,
            updated_at=NOW,
        )
        await records.create(VMS, vm)
        return vm

    def free(count: int) -> list[int]:
        return list(itertools.islice(asked.free(), count))

    kept = [await made(slot) for slot in (1, 2, 4)]
    asked = Slots(records)
    assert free(2) == [3, 5]
    await made(3)
    assert free(2) == [5, 6]
    await records.commit(remove(VMS, records.find(VMS, kept[1].id)))
    assert free(2) == [2, 5]
    await made(2)
    await made(5)
    assert free(2) == [6, 7]
    monkeypatch.setattr(slots, "MAX_SLOT", 6)
    with pytest.raises(NoRoom, match="no isolation slot"):
        free(2)
    await records.stop()
    await store.close()
