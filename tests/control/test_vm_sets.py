"""The sets of VMs that workers look at each second: small ones, kept up with the records, as if all were looked at."""

from __future__ import annotations

import datetime
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.ha.protected import Protected
from novacron.control.nodes.lost_vms import LostVms
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, remove
from novacron.control.store.sqlite import SqliteStore
from novacron.model.ha import HaPolicy, Protection
from novacron.model.machine import MachineStatus
from novacron.model.vm import Desired, Problem, Vm
from tests.bench.records import a_vm

pytestmark = pytest.mark.anyio

NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
RESTART = Protection(policy=HaPolicy.RESTART)


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    one = Records(store, SystemClock(), random.Random(1))
    await one.start()
    yield one
    await one.stop()
    await store.close()


def vm(name: str, node_id: str, status: MachineStatus = MachineStatus.RUNNING, **changed: Any) -> Vm:
    made = a_vm(name, name, node_id)
    ha, desired = changed.pop("ha", RESTART), changed.pop("desired", Desired.RUNNING)
    seen = msgspec.structs.replace(made.observed, status=status) if made.observed else None
    spec = msgspec.structs.replace(made.spec, ha=ha)
    return msgspec.structs.replace(made, spec=spec, desired=desired, observed=seen, **changed)


async def change(records: Records, name: str, **changed: Any) -> None:
    await records.change(VMS, name, lambda old: msgspec.structs.replace(old, **changed))


async def test_records_are_found_by_their_node_wherever_they_move(records: Records) -> None:
    for name, node in (("b", "n1"), ("a", "n1"), ("c", "n2"), ("d", "")):
        await records.create(VMS, vm(name, node))
    found = [[one.record.id for one in records.on_node(VMS, node)] for node in ("n1", "n2", "", "n3")]
    assert found == [["a", "b"], ["c"], [], []]
    await change(records, "a", node_id="n2")
    await change(records, "b", description="as before")
    await records.commit(remove(VMS, _stored(records, "c")))
    assert [[one.record.id for one in records.on_node(VMS, node)] for node in ("n1", "n2")] == [["b"], ["a"]]
    assert records.on_node(VMS, "n1")[0].record.description == "as before"


def _stored(records: Records, name: str) -> Any:
    stored = records.get(VMS, name)
    assert stored is not None
    return stored


async def test_protected_vms_are_known_by_node_and_the_uneasy_ones_apart(records: Records) -> None:
    told = Problem(code="ha.nowhere", message="", at=NOW)
    await records.create(VMS, vm("calm", "n1"))
    await records.create(VMS, vm("ended", "n1", MachineStatus.CRASHED))
    protected = Protected(records)
    await records.create(VMS, vm("off", "n1", MachineStatus.STOPPED, desired=Desired.STOPPED))
    await records.create(VMS, vm("other", "n1", ha=Protection()))
    await records.create(VMS, vm("told", "n2", ha=Protection(), problem=told))
    assert [one.record.id for one in protected.on_node("n2")] == ["told"]
    assert sorted(one.record.id for one in protected.on_node("n1")) == ["calm", "ended", "off"]
    assert [one.record.id for one in protected.uneasy()] == ["ended", "told"]
    await change(records, "told", problem=None)
    await change(records, "ended", node_id="n3", observed=None)
    await records.commit(remove(VMS, _stored(records, "calm")))
    assert [one.record.id for one in protected.on_node("n2")] == []
    assert [one.record.id for one in protected.on_node("n3")] == ["ended"]
    assert [one.record.id for one in protected.on_node("n1")] == ["off"]
    assert [one.record.id for one in protected.uneasy()] == ["ended"]


async def test_vms_to_mark_are_those_whose_record_says_other_than_their_node(records: Records) -> None:
    await records.create(VMS, vm("a", "n1"))
    await records.create(VMS, vm("b", "n2", node_lost=True))
    lost = LostVms(records)
    await records.create(VMS, vm("c", "n3", node_lost=True))
    await records.create(VMS, vm("d", "n1", node_lost=True))

    def to_mark(**nodes: bool) -> list[str]:
        return [one.record.id for one in lost.to_mark(nodes)]

    assert to_mark(n1=True, n2=True, n3=True) == ["a"]
    assert to_mark(n1=False, n2=False) == ["b", "d"]
    assert to_mark() == []
    await change(records, "b", node_lost=False)
    await change(records, "a", node_lost=True)
    assert to_mark(n1=False, n2=False) == ["a", "d"]
    await records.commit(remove(VMS, _stored(records, "d")))
    assert to_mark(n1=False) == ["a"]
    lost.close()
    await change(records, "b", node_lost=True)
    assert to_mark(n2=False) == []
