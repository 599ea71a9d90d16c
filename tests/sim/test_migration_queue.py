"""Migrations that wait: for their policy's window, for a slot on their nodes; over servers that die meanwhile."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import pytest

from novacron.control.once import Once
from novacron.control.store.kinds import BULK_MIGRATIONS, POLICIES
from novacron.model.bulk_migration import BulkState, is_bulk_final
from novacron.model.migration import Migration, MigrationState, Wishes
from novacron.model.policy import DAYS, Policy, Window
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.hand_clock import START
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate
from novacron.wire.rest.migrations import MigrationCreate
from tests.sim.house import House
from tests.sim.house import house as any_house

pytestmark = pytest.mark.anyio

house = functools.partial(any_house, heartbeats=False)  # hours pass
OPENS = START + datetime.timedelta(minutes=20)
CLOSES = OPENS + datetime.timedelta(minutes=10)


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


async def ask(h: House, vm_id: str, **asked: Any) -> Migration:
    once = Once(h.records.store, "", "", h.clock.wall())
    made = (await h.migrations.create(MigrationCreate(vm=vm_id, **asked), "admin", once)).stored.record
    assert isinstance(made, Migration)
    return made


async def nightly(h: House) -> None:
    """The default policy: ten minutes each night."""
    window = Window(days=DAYS, begins=f"{OPENS:%H:%M}", ends=f"{CLOSES:%H:%M}")
    policy = Policy(
        id=h.records.new_id(),
        name="nightly",
        goals=Wishes(),
        windows=(window,),
        is_default=True,
        created_at=START,
        updated_at=START,
    )
    await h.records.create(POLICIES, policy)


async def pass_until(h: House, moment: datetime.datetime) -> None:
    """In steps, so that heartbeats come."""
    while h.clock.wall() < moment:
        await h.clock.advance(min(5.0, (moment - h.clock.wall()).total_seconds()))


async def test_outside_its_window_a_migration_waits_until_it_opens(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id, other = await h.running_vm("a"), await h.running_vm("a")
        await nightly(h)
        waiting = await ask(h, vm_id)
        assert waiting.not_before == OPENS
        assert "waits until 2025-01-01 00:20 UTC: windows of policy nightly" in waiting.explanation[-1]
        at_once = await ask(h, other, now=True)
        assert await h.ended(at_once.id) is MigrationState.COMPLETED
        await pass_until(h, OPENS - datetime.timedelta(minutes=10))
        await h.replace_worker("conductor")
        await pass_until(h, OPENS - datetime.timedelta(seconds=1))
        assert h.migration(waiting.id).began == ()
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        done = h.migration(waiting.id)
        assert done.began_at is not None
        assert OPENS <= done.began_at <= OPENS + datetime.timedelta(seconds=1)
        assert done.figures.total_ms is not None
        assert done.figures.total_ms < 60_000
        assert await h.check_peace(vm_id) == "b"


async def test_one_that_waits_can_be_cancelled_and_holds_nothing_then(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=START + datetime.timedelta(days=1))
        once = Once(h.records.store, "", "", h.clock.wall())
        await h.migrations.cancel(waiting.id, None, once)
        assert await h.ended(waiting.id) is MigrationState.CANCELLED
        assert h.vm(vm_id).migration_id == ""
        assert await h.check_peace(vm_id) == "a"


async def test_a_node_takes_part_in_two_at_once_and_the_urgent_one_is_next(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=2.0) as h:
        priorities = (50, 50, 10, 20, 90, 80)
        vms = [await h.running_vm("a") for _ in priorities]
        asked = [(await ask(h, vm_id, priority=one)).id for vm_id, one in zip(vms, priorities, strict=True)]
        most = 0

        def ended() -> bool:
            nonlocal most
            now = [h.migration(one) for one in asked]
            most = max(most, sum(bool(one.began) and one.finished_at is None for one in now))
            return all(one.finished_at for one in now)

        await h.until(ended, "all have ended")
        assert most == 2
        stories = [h.migration(one) for one in asked]
        assert {one.state for one in stories} == {MigrationState.COMPLETED}
        began_at = [one.began_at or START for one in stories]
        assert max(began_at[4:]) < min(began_at[2:4])


async def test_a_drain_waits_for_the_windows_of_its_vms_and_holds_none_meanwhile(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await nightly(h)
        once = Once(h.records.store, "", "", h.clock.wall())
        bulk_id = (await h.bulk.create(BulkMigrationCreate(drain="a"), "admin", once)).stored.record.id
        await pass_until(h, OPENS - datetime.timedelta(seconds=5))
        bulk = h.records.find(BULK_MIGRATIONS, bulk_id).record
        assert bulk.entries[0].reasons[0].code == "window.closed"
        assert h.vm(vm_id).migration_id == ""
        await h.until(lambda: is_bulk_final(h.records.find(BULK_MIGRATIONS, bulk_id).record), "it ends")
        assert h.records.find(BULK_MIGRATIONS, bulk_id).record.state is BulkState.COMPLETED
        assert await h.check_peace(vm_id) == "b"
