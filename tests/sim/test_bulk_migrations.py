"""Bulk migrations through the production parts: servers and targets that die, pause, cancel, and the way back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.control.bulk_migrations.worker import BULK_LABEL, BulkWorker
from novacron.control.once import Once
from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES, POOLS, VMS
from novacron.errors import MachineDied, StateConflict
from novacron.model.bulk_migration import (
    PATIENCE_S,
    BulkMigration,
    BulkState,
    EntryState,
    entry_of,
    is_bulk_final,
)
from novacron.model.migration import Migration, MigrationState, is_final
from novacron.model.placement import PlacementWishes, RuleKind, VmRule
from novacron.model.vm import VmState
from novacron.testing.fake_driver import FakeDriver
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


def once(h: House) -> Once:
    return Once(h.records.store, "", "", h.clock.wall())


async def begin(h: House, **asked: Any) -> str:
    made = await h.bulk.create(BulkMigrationCreate(**asked), "admin", once(h))
    bulk: BulkMigration = made.stored.record
    return bulk.id


def bulk_of(h: House, bulk_id: str) -> BulkMigration:
    return h.records.find(BULK_MIGRATIONS, bulk_id).record


async def ended(h: House, bulk_id: str) -> BulkMigration:
    await h.until(lambda: is_bulk_final(bulk_of(h, bulk_id)), "the bulk migration ends")
    return bulk_of(h, bulk_id)


def where(h: House, vm_ids: list[str]) -> Counter[str]:
    names = {agent.node_id: name for name, agent in h.cluster.agents.items()}
    return Counter(names[h.vm(vm_id).node_id] for vm_id in vm_ids)


def under_way(h: House) -> list[Migration]:
    return [one.record for one in h.records.all(MIGRATIONS) if not is_final(one.record)]


def only_sends_to(h: House, name: str) -> bool:
    """Whether guests are on their way there, none of them handed over yet: that one would wait for it."""
    coming = [one for one in under_way(h) if one.target_node == h.cluster[name].node_id]
    return bool(coming) and all(one.did == ("accept",) for one in coming)


class Watch:
    """The most that ever was under way at once: in all, on a node, and of the budget."""

    def __init__(self, h: House) -> None:
        self.in_all = self.on_node = self.given = 0
        self._house = h
        h.records.subscribe(lambda _: self._look())

    def _look(self) -> None:
        now = under_way(self._house)
        nodes = Counter(node for one in now for node in (one.source_node, one.target_node))
        self.in_all = max(self.in_all, len(now))
        self.on_node = max([self.on_node, *nodes.values()])
        self.given = max(self.given, sum(one.goals.bandwidth_bytes_per_s for one in now))


def done(h: House, bulk_id: str) -> int:
    return sum(entry.state is EntryState.DONE for entry in bulk_of(h, bulk_id).entries)


async def test_a_drain_survives_servers_that_die_and_brings_everything_back(tmp_path: Path) -> None:
    """20 VMs; the worker and the conductor are replaced again and again in the middle of it."""
    async with house(tmp_path, nodes="abc", transfer_s=1.0) as h:
        vms = [await h.running_vm("a") for _ in range(20)]
        watch = Watch(h)
        budget = 100 * MIB
        drain = await begin(h, drain="a", bandwidth_budget_bytes_per_s=budget, max_per_link=1)
        assert h.records.find(NODES, "a").record.cordoned
        for number in range(1, 20, 3):
            await h.until(lambda number=number: done(h, drain) >= number, f"{number} have moved")  # type: ignore[misc]
            await h.replace_worker("bulk")
            await h.replace_worker("conductor")
        made = await ended(h, drain)
        assert made.state is BulkState.COMPLETED
        assert {entry.state for entry in made.entries} == {EntryState.DONE}
        assert where(h, vms) == {"b": 10, "c": 10}
        assert all(len(entry.migration_ids) == 1 for entry in made.entries)
        assert [entry.target_node for entry in made.entries] == [h.vm(vm_id).node_id for vm_id in vms]
        assert len(h.records.all(MIGRATIONS)) == 20
        assert all(one.record.labels == {BULK_LABEL: drain} for one in h.records.all(MIGRATIONS))
        assert (watch.in_all, watch.on_node, watch.given) == (2, 2, budget)
        back = await ended(h, await begin(h, bring_back="a"))
        assert back.state is BulkState.COMPLETED
        assert not h.records.find(NODES, "a").record.cordoned
        assert where(h, vms) == {"a": 20}
        for vm_id in vms:
            assert await h.check_peace(vm_id) == "a"
        again = await ended(h, await begin(h, bring_back="a"))
        assert again.entries == ()


async def test_a_drain_never_brings_together_who_must_be_apart(tmp_path: Path) -> None:
    """Three that were put together before they were told to keep apart; two nodes to go to."""
    apart = PlacementWishes(vm_rules=(VmRule(kind=RuleKind.APART, labels={"app": "web"}),))
    async with house(tmp_path, nodes="abc") as h:
        vms = [await h.running_vm("a") for _ in range(3)]
        for vm_id in vms:
            await h.records.change(
                VMS, vm_id, lambda vm: msgspec.structs.replace(vm, labels={"app": "web"}, placement=apart)
            )
        most: Counter[str] = Counter()

        def look(_: object) -> None:
            there = {(vm_id, h.vm(vm_id).node_id) for vm_id in vms}
            there |= {(one.vm_id, one.target_node) for one in under_way(h)}
            now = Counter(node_id for _, node_id in there)
            most.update({node_id: max(0, count - most[node_id]) for node_id, count in now.items()})

        h.records.subscribe(look)
        drain = await begin(h, drain="a")
        await h.until(lambda: done(h, drain) == 2, "two have moved")
        made = bulk_of(h, drain)
        while not is_bulk_final(made):  # the third is waited for
            await h.clock.advance(1.0)
            made = bulk_of(h, drain)
        assert made.state is BulkState.COMPLETED_WITH_FAILURES
        assert where(h, vms) == {"a": 1, "b": 1, "c": 1}
        assert [most[h.cluster[name].node_id] for name in "abc"] == [3, 1, 1]
        stays = [entry for entry in made.entries if entry.state is not EntryState.DONE]
        assert {reason.code for reason in stays[0].reasons} & {"affinity.apart", "affinity.kept_away"}


async def test_a_target_that_dies_is_planned_around(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=3.0) as h:
        vms = [await h.running_vm("a") for _ in range(8)]
        drain = await begin(h, drain="a")
        planned = Counter(entry.target_node for entry in bulk_of(h, drain).entries)
        assert planned == {h.cluster["b"].node_id: 4, h.cluster["c"].node_id: 4}
        await h.until(lambda: done(h, drain) >= 1 and only_sends_to(h, "b"), "one has moved, none is half b's")
        await h.cluster.kill("b")
        made = await ended(h, drain)
        assert made.state is BulkState.COMPLETED
        assert made.replans >= 1
        assert where(h, vms)["a"] == 0
        assert where(h, vms)["c"] >= 6
        tries = Counter(len(entry.migration_ids) for entry in made.entries)
        assert max(tries) <= 2
        assert tries[2] >= 1  # what was on its way to b came back, and went to c
        assert h.cluster.world.violations == []


async def test_a_vm_that_fails_everywhere_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        bad = await h.running_vm("a")
        for name in ("b", "c", "b"):
            h.cluster[name].host.fail("accept", MachineDied("no such machine type"))
        drain = await begin(h, drain="a")
        await h.until(lambda: entry_of(bulk_of(h, drain), bad).state is EntryState.FAILED, "given up")  # type: ignore[union-attr]
        made = await ended(h, drain)
        assert made.state is BulkState.COMPLETED_WITH_FAILURES
        entry = entry_of(made, bad)
        assert entry is not None
        targets = [h.migration(one).target_node for one in entry.migration_ids]
        assert len(targets) == 3
        assert targets[0] != targets[1]
        assert "no such machine type" in entry.reasons[0].message
        assert h.state(bad) is VmState.RUNNING
        assert await h.check_peace(bad) == "a"


async def test_pause_begins_none_resume_goes_on_and_cancel_leaves_what_has_moved(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="ab", transfer_s=4.0) as h:
        vms = [await h.running_vm("a") for _ in range(6)]
        drain = await begin(h, drain="a")
        await h.until(lambda: len(under_way(h)) == 2, "two are under way")
        await h.bulk.pause(drain, None, once(h))
        await h.until(lambda: not under_way(h), "those under way have ended")
        await h.until(lambda: done(h, drain) == 2, "and are noted")
        at_s = h.clock.monotonic_s()
        await h.until(lambda: h.clock.monotonic_s() > at_s + 30, "time passes")
        assert len(h.records.all(MIGRATIONS)) == 2
        assert bulk_of(h, drain).state is BulkState.PAUSED
        await h.bulk.resume(drain, None, once(h))
        await h.until(lambda: len(under_way(h)) == 2, "the next two are under way")
        await h.bulk.cancel(drain, None, once(h))
        made = await ended(h, drain)
        assert made.state is BulkState.CANCELLED
        states = Counter(entry.state for entry in made.entries)
        assert states == {EntryState.DONE: 2, EntryState.CANCELLED: 4}
        assert where(h, vms) == {"a": 4, "b": 2}
        assert {one.record.state for one in h.records.all(MIGRATIONS)} == {
            MigrationState.COMPLETED, MigrationState.CANCELLED
        }  # fmt: skip
        for vm_id in vms:
            await h.check_peace(vm_id)
        with pytest.raises(StateConflict):
            await h.bulk.resume(drain, None, once(h))


async def test_moves_that_others_began_count_and_their_vms_are_waited_for(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=2.0) as h:
        vms = [await h.running_vm("a") for _ in range(3)]
        coming = await h.running_vm("b")
        other = await h.migrate(vms[0], "c")
        arriving = await h.migrate(coming, "a")
        watch = Watch(h)
        drain = await begin(h, drain="a")
        made = await ended(h, drain)
        assert made.state is BulkState.COMPLETED
        assert watch.on_node == 2
        assert (await h.ended(other), await h.ended(arriving)) == (MigrationState.COMPLETED,) * 2
        states = {entry.vm_id: entry.state for entry in made.entries}
        assert states[vms[0]] is EntryState.SKIPPED  # others moved it
        assert states[coming] is EntryState.DONE  # it came, and went on
        assert where(h, [*vms, coming])["a"] == 0


async def test_with_nowhere_to_go_it_ends_after_a_while_and_says_why(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="ab", transfer_s=2.0) as h:
        vms = [await h.running_vm("a") for _ in range(4)]
        drain = await begin(h, drain="a")
        await h.until(lambda: len(under_way(h)) == 2, "two are under way")
        await h.cluster.kill("b")
        began_s = h.clock.monotonic_s()
        made = bulk_of(h, drain)
        while not is_bulk_final(made):
            await h.clock.advance(1.0)
            made = bulk_of(h, drain)
            assert h.clock.monotonic_s() - began_s < PATIENCE_S * 2 + 300
        assert made.state is BulkState.COMPLETED_WITH_FAILURES
        assert {entry.state for entry in made.entries} <= {EntryState.STAYS, EntryState.FAILED}
        assert all(entry.reasons for entry in made.entries)
        assert where(h, vms) == {"a": 4}


async def test_two_servers_at_once_move_no_vm_twice(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        vms = [await h.running_vm("a") for _ in range(10)]
        other = BulkWorker(h.records, h.room, h.migrations, h.surveyor, h.clock)
        working = asyncio.create_task(other.run())
        watch = Watch(h)
        made = await ended(h, await begin(h, drain="a"))
        working.cancel()
        assert made.state is BulkState.COMPLETED
        assert len(h.records.all(MIGRATIONS)) == 10
        assert watch.on_node <= 2
        assert where(h, vms)["a"] == 0


async def test_a_vm_at_rest_is_moved_too(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="ab") as h:
        running = await h.running_vm("a")
        resting = await h.running_vm("a")
        await _stop(h, resting)
        made = await ended(h, await begin(h, drain="a"))
        assert made.state is BulkState.COMPLETED
        assert where(h, [running, resting]) == {"b": 2}
        assert h.state(resting) is VmState.STOPPED


async def _stop(h: House, vm_id: str) -> None:
    import msgspec

    from novacron.model.vm import Desired, Task, TaskKind, Vm

    def stopped(vm: Vm) -> Vm:
        task = Task(id=h.records.new_id(), kind=TaskKind.STOP, requested_at=h.clock.wall(), force=True)
        return msgspec.structs.replace(vm, desired=Desired.STOPPED, task=task)

    await h.records.change(VMS, vm_id, stopped)
    await h.until(lambda: h.state(vm_id) is VmState.STOPPED and h.vm(vm_id).task is None, "it is stopped")


async def test_disks_that_nodes_do_not_share_go_along_and_come_back(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=0.5) as h:
        vms = [await h.running_vm("a", local=True) for _ in range(4)]
        await h.until(lambda: all(len(one.record.reach) == 3 for one in h.records.all(POOLS)), "all pools are reached")
        made = await ended(h, await begin(h, drain="a"))
        assert {entry.state for entry in made.entries} == {EntryState.DONE}
        for vm_id in vms:
            assert await h.check_peace(vm_id) in "bc"
        await ended(h, await begin(h, bring_back="a"))
        for vm_id in vms:
            assert await h.check_peace(vm_id) == "a"


async def test_the_budget_is_shared_anew_when_a_move_ends_or_is_paced_by_hand(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=30.0) as h:
        one, other = [await h.running_vm("a") for _ in range(2)]
        watch = Watch(h)

        def rates() -> dict[str, int]:
            streaming = [now for now in under_way(h) if now.state is MigrationState.TRANSFERRING]
            return {now.vm_id: now.goals.bandwidth_bytes_per_s // MIB for now in streaming}

        def told(vm_id: str) -> list[int]:
            return [pace // MIB for pace in h.cluster["a"].host.machines[vm_id].paces]

        bulk = await begin(h, vms=[one, other], bandwidth_budget_bytes_per_s=90 * MIB)
        await h.until(lambda: rates() == {one: 45, other: 45}, "both have half")
        moving = next(now for now in under_way(h) if now.vm_id == one)
        await h.migrations.set_bandwidth(moving.id, 30 * MIB, "ada", None, once(h))
        await h.until(lambda: (told(one), told(other)) == ([30], [60]), "the other is told to take what is left")
        assert watch.given <= 90 * MIB
        await h.migrations.cancel(moving.id, None, once(h))
        await h.until(lambda: told(other) == [60, 90], "it is alone, and has all of it")
        assert rates() == {other: 90}
        assert watch.given <= 90 * MIB
        made = await ended(h, bulk)
        assert {entry.vm_id for entry in made.entries if entry.state is EntryState.DONE} >= {other}


async def test_one_that_joins_takes_its_part_from_those_under_way(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc", transfer_s=30.0) as h:
        first, late = [await h.running_vm("a") for _ in range(2)]
        watch = Watch(h)
        busy = await h.migrate(late, "b")
        await h.until(lambda: h.migration(busy).state is MigrationState.TRANSFERRING, "one is moved by somebody else")
        bulk = await begin(h, vms=[first, late], bandwidth_budget_bytes_per_s=80 * MIB, target_node="c")

        def rate(vm_id: str) -> int:
            mine = [now for now in under_way(h) if now.vm_id == vm_id and now.id != busy]
            return mine[0].goals.bandwidth_bytes_per_s // MIB if mine else 0

        await h.until(lambda: rate(first) == 80, "it has all of it, as it is alone")
        await h.migrations.cancel(busy, None, once(h))
        await h.until(lambda: (rate(first), rate(late)) == (40, 40), "the other has joined")
        assert watch.given <= 80 * MIB
        made = await ended(h, bulk)
        assert made.state is BulkState.COMPLETED
