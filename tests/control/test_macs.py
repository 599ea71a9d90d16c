"""MAC addresses of new cards: none that a VM has, none twice."""

from __future__ import annotations

import datetime
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from novacron.clock import SystemClock
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.control.vms.macs import Macs
from novacron.errors import NoRoom
from novacron.model.machine import Nic
from novacron.model.vm import Desired, Vm, VmSpec

pytestmark = pytest.mark.anyio
NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


def drawing(*numbers: int) -> Callable[[int], bytes]:
    """These, over and over."""
    source = itertools.cycle(numbers)
    return lambda size: next(source).to_bytes(size, "big")


async def test_another_is_drawn_for_one_that_is_taken(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    records = Records(store, SystemClock(), random.Random(1))
    await records.start()
    spec = VmSpec(image_id=records.new_id(), nics=(Nic(id=records.new_id(), mac="52:4e:43:00:00:01"),))
    vm = Vm(id=records.new_id(), name="one", spec=spec, desired=Desired.STOPPED, created_at=NOW, updated_at=NOW)
    await records.create(VMS, vm)
    macs = Macs(records, drawing(1, 2, 1, 2, 3))
    assert [macs.new(), macs.new()] == ["52:4e:43:00:00:02", "52:4e:43:00:00:03"]
    with pytest.raises(NoRoom, match="no free MAC"):
        Macs(records, drawing(1)).new()
    await records.stop()
    await store.close()
