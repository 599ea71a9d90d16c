"""Migrations that wait for their time hold nothing, and are decided anew when it has come; over servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from novacron.config import ServerConfig
from novacron.control.ha.admission import Admission
from novacron.control.migrations import holder
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.service import MigrationService
from novacron.control.once import Once
from novacron.control.room import Room
from novacron.control.store.base import Delete, Expect, Put
from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import Seen, create, update
from novacron.control.vms.service import VmService
from novacron.errors import Busy, NovaCronError, StoreUnavailable
from novacron.model.bulk_migration import PATIENCE_S, BulkState, EntryState, is_bulk_final
from novacron.model.ha import HaAdmission
from novacron.model.migration import Migration, MigrationKind, MigrationState, Strategy, is_final, waits
from novacron.model.vm import Task, TaskKind, VmState
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.hand_clock import START
from novacron.testing.sim_pool import POOL_ID
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate
from novacron.wire.rest.migrations import MigrationCreate
from novacron.wire.rest.vms import StopRequest
from tests.sim.house import House
from tests.sim.house import house as any_house
from tests.sim.test_migration_chaos import SEEDS
from tests.sim.test_migration_queue import CLOSES, OPENS, ask, nightly, pass_until
from tests.sim.test_migration_story import killed_after_write

pytestmark = pytest.mark.anyio

house = functools.partial(any_house, heartbeats=False)  # hours pass
LATER = START + datetime.timedelta(minutes=10)


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


def once(h: House) -> Once:
    return Once(h.records.store, "", "", h.clock.wall())


def vms(h: House) -> VmService:
    admission = Admission(h.records, h.room, h.protected, POOL_ID, HaAdmission.WARN)
    return VmService(h.records, h.cluster, h.room, h.clock, POOL_ID, admission)


async def occupied(h: House, vm_id: str) -> None:
    """A task of it is under way that nobody ends."""
    task = Task(id="t", kind=TaskKind.SNAPSHOT, requested_at=h.clock.wall())
    await h.records.change(VMS, vm_id, lambda now: msgspec.structs.replace(now, task=task))


async def let_go(h: House, vm_id: str) -> None:
    await h.records.change(VMS, vm_id, lambda now: msgspec.structs.replace(now, task=None))


async def almost(h: House) -> None:
    """The last second before the time of those that wait."""
    await pass_until(h, LATER - datetime.timedelta(seconds=1))


class Story:
    """What listeners are told of one migration."""

    def __init__(self, h: House, migration_id: str) -> None:
        self._id = migration_id
        self.told: list[Migration] = []
        h.records.subscribe(self._notice)

    def _notice(self, seen: Sequence[Seen]) -> None:
        self.told += [one.now for one in seen if one.kind is MIGRATIONS and one.now and one.now.id == self._id]

    def taken(self) -> int:
        """How often it took hold of its VM."""
        holding = [False, *(one.holds for one in self.told)]
        return sum(now and not before for before, now in itertools.pairwise(holding))


async def test_until_its_time_the_vm_is_free_and_then_it_moves_as_it_is_by_then(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        assert (waiting.holds, waiting.not_before, h.vm(vm_id).migration_id) == (False, LATER, "")
        assert h.room.promised()[h.cluster["a"].node_id].memory_mib == 64
        assert h.cluster["b"].node_id not in h.room.promised()
        await vms(h).stop(vm_id, StopRequest(force=True), "admin", None, once(h))
        await h.until(lambda: h.state(vm_id) is VmState.STOPPED and h.vm(vm_id).task is None, "it stops")
        await almost(h)
        assert not h.migration(waiting.id).holds
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        done = h.migration(waiting.id)
        assert (done.kind, done.at_rest, done.holds) == (MigrationKind.COLD, True, True)
        assert (done.created_at, done.not_before) == (waiting.created_at, LATER)
        assert "at rest, it was live, precopy" in done.explanation[0]
        assert (h.vm(vm_id).node_id, h.vm(vm_id).migration_id) == (h.cluster["b"].node_id, "")


async def test_one_waits_for_a_vm_at_most_and_a_move_at_once_is_allowed_beside_it(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, target_node="c", starts_at=LATER)
        with pytest.raises(Busy) as refused:
            await ask(h, vm_id, starts_at=LATER)
        assert waiting.id in refused.value.message
        assert f"novacron migration cancel {waiting.id}" in refused.value.reasons[0].remedy
        at_once = await ask(h, vm_id, target_node="b")
        assert await h.ended(at_once.id) is MigrationState.COMPLETED
        await h.migrations.cancel(waiting.id, None, once(h))
        assert h.migration(waiting.id).state is MigrationState.CANCELLED
        another = await ask(h, vm_id, target_node="c", starts_at=LATER)
        back = await ask(h, vm_id, target_node="a")
        assert await h.ended(back.id) is MigrationState.COMPLETED
        await almost(h)
        assert await h.ended(another.id) is MigrationState.COMPLETED
        assert h.clock.wall() >= LATER
        assert await h.check_peace(vm_id) == "c"


async def test_two_requests_at_once_leave_one_that_waits(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        other = MigrationService(h.records, Room(h.records, config(h)), h.clock, h.planner, h.migrations._links)
        wish = MigrationCreate(vm=vm_id, starts_at=LATER)
        wishes = [service.create(wish, "admin", once(h)) for service in (h.migrations, other)]
        ends = await asyncio.gather(*wishes, return_exceptions=True)
        assert sum(isinstance(end, Busy) for end in ends) == 1
        assert sum(waits(one.record) for one in h.records.all(MIGRATIONS)) == 1


def counted(h: House, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of those that try to take hold, a try each."""
    tries: list[str] = []
    take_hold = h.migrations.take_hold

    async def counting(migration_id: str) -> None:
        tries.append(migration_id)
        await take_hold(migration_id)

    monkeypatch.setattr(h.migrations, "take_hold", counting)
    return tries


async def test_a_busy_vm_is_waited_for_without_spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as h:
        vm_id, behind = await h.running_vm("a"), await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        await occupied(h, vm_id)
        story, tries = Story(h, waiting.id), counted(h, monkeypatch)
        await pass_until(h, LATER + datetime.timedelta(hours=1))
        assert 2 <= len(tries) <= 3600 / holder.LOOK_S + 1
        now = h.migration(waiting.id)
        assert not now.holds
        assert now.held_up is not None
        assert "task snapshot is under way" in now.held_up.message
        assert LATER <= now.held_up.at <= LATER + datetime.timedelta(seconds=1)
        assert len(story.told) == 1
        assert await h.ended((await ask(h, behind)).id) is MigrationState.COMPLETED  # it takes no slot meanwhile
        free = h.clock.wall()
        await let_go(h, vm_id)
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        done = h.migration(waiting.id)
        assert done.began_at is not None
        assert (done.began_at - free).total_seconds() < holder.LOOK_S / 3
        assert done.held_up is None
        assert await h.check_peace(vm_id) == "b"


async def test_those_whose_time_has_come_hold_their_vms_in_turn(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=2.0) as h:
        priorities = (50, 10, 90, 50, 80)
        vm_ids = [await h.running_vm("a") for _ in priorities]
        asked = [
            (await ask(h, vm_id, starts_at=LATER, priority=one)).id
            for vm_id, one in zip(vm_ids, priorities, strict=True)
        ]
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, sum(bool(h.vm(vm_id).migration_id) for vm_id in vm_ids))
            return all(is_final(h.migration(one)) for one in asked)

        await almost(h)
        await h.until(ended, "all have ended")
        assert most == 2
        stories = [h.migration(one) for one in asked]
        assert {one.state for one in stories} == {MigrationState.COMPLETED}
        began_at = [one.began_at or START for one in stories]
        assert max(began_at[2], began_at[4]) < min(began_at[0], began_at[1], began_at[3])
        assert began_at[1] == max(began_at)


async def test_a_window_that_closed_over_a_busy_vm_is_waited_for_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await nightly(h)
        waiting = await ask(h, vm_id)
        await occupied(h, vm_id)
        await pass_until(h, CLOSES + datetime.timedelta(minutes=1))
        await let_go(h, vm_id)
        await h.until(lambda: h.migration(waiting.id).not_before != OPENS, "it is put off")
        now = h.migration(waiting.id)
        assert (now.not_before, now.holds, now.held_up) == (OPENS + datetime.timedelta(days=1), False, None)
        assert "window had closed" in now.explanation[0]
        assert h.vm(vm_id).migration_id == ""


async def deleted(h: House, vm_id: str) -> None:
    await vms(h).delete(vm_id, "admin", None, force=True)
    await h.until(lambda: h.records.get(VMS, vm_id) is None, "it is deleted")


async def deleted_while_no_server_was_there(h: House, vm_id: str) -> None:
    await h.kill_worker("conductor")
    await deleted(h, vm_id)
    h.start_worker("conductor")


async def moved_there(h: House, vm_id: str) -> None:
    assert await h.ended((await ask(h, vm_id, target_node="b")).id) is MigrationState.COMPLETED


async def cordoned(h: House, _vm_id: str) -> None:
    node_id = h.cluster["b"].node_id
    await h.records.change(NODES, node_id, lambda now: msgspec.structs.replace(now, cordoned=True))


@pytest.mark.parametrize(
    ("happens", "code", "words", "after_s"),
    [
        (deleted, "vm.gone", "was deleted", None),
        (deleted_while_no_server_was_there, "vm.gone", "was deleted", None),
        (moved_there, "invalid_input", "is there already", 0.0),
        (cordoned, "no_room", "cordoned", PATIENCE_S),
    ],
)
async def test_what_can_never_be_ends_with_what_to_type_and_the_vm_as_it_was(
    tmp_path: Path,
    happens: Callable[[House, str], Awaitable[None]],
    code: str,
    words: str,
    after_s: float | None,
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, target_node="b", starts_at=LATER)
        await happens(h, vm_id)
        before = h.records.get(VMS, vm_id)
        if after_s is not None:
            await pass_until(h, LATER + datetime.timedelta(seconds=after_s - 1))
            assert not is_final(h.migration(waiting.id))
            await pass_until(h, LATER + datetime.timedelta(seconds=after_s + holder.LOOK_S))
        assert await h.ended(waiting.id) is MigrationState.FAILED
        ended = h.migration(waiting.id)
        assert ended.problem is not None
        assert (ended.problem.code, ended.holds, ended.began) == (code, False, ())
        assert words in ended.problem.message
        assert ended.problem.remedy
        assert ended.finished_at is not None
        if before is not None:
            assert h.vm(vm_id).generation == before.record.generation
            assert await h.check_peace(vm_id) == ("b" if happens is moved_there else "a")
        else:
            assert ended.finished_at < LATER


async def test_a_drain_goes_on_with_its_own_move_of_a_vm_that_has_one_waiting(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        there, coming = await h.running_vm("a"), await h.running_vm("b")
        waiting = await ask(h, there, target_node="b", starts_at=LATER)
        wish_to_a = await ask(h, coming, target_node="a", starts_at=LATER)
        bulk_id = (await h.bulk.create(BulkMigrationCreate(drain="a"), "admin", once(h))).stored.record.id
        await h.until(lambda: is_bulk_final(h.records.find(BULK_MIGRATIONS, bulk_id).record), "the drain ends")
        bulk = h.records.find(BULK_MIGRATIONS, bulk_id).record
        assert bulk.state is BulkState.COMPLETED
        assert [(one.vm_id, one.state) for one in bulk.entries] == [(there, EntryState.DONE)]
        assert h.clock.wall() < LATER
        assert waits(h.migration(waiting.id))
        await almost(h)
        assert await h.ended(waiting.id) in (MigrationState.COMPLETED, MigrationState.FAILED)  # it may be on b already
        await pass_until(h, LATER + datetime.timedelta(seconds=PATIENCE_S + holder.LOOK_S))
        assert await h.ended(wish_to_a.id) is MigrationState.FAILED  # the node takes none any more
        assert await h.check_peace(there) == "b"
        assert await h.check_peace(coming) == "b"


def config(h: House) -> ServerConfig:
    return ServerConfig(data_dir=h.root, pool_dir=h.root)


@asynccontextmanager
async def second_server(h: House) -> AsyncIterator[MigrationService]:
    """Another conductor over the same store, with a queue of promises of its own."""
    service = MigrationService(h.records, Room(h.records, config(h)), h.clock, h.planner, h.migrations._links)
    conductor = asyncio.create_task(Conductor(h.records, h.cluster, h.clock, service).run())
    try:
        yield service
    finally:
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)


async def test_of_two_servers_one_takes_hold(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_ids = [await h.running_vm("a") for _ in range(4)]
        asked = [await ask(h, vm_id, starts_at=LATER) for vm_id in vm_ids]
        stories = [Story(h, one.id) for one in asked]
        async with second_server(h):
            await almost(h)
            for one in asked:
                assert await h.ended(one.id) is MigrationState.COMPLETED
        assert [story.taken() for story in stories] == [1] * 4
        for vm_id in vm_ids:
            assert await h.check_peace(vm_id) == "b"
            assert h.vm(vm_id).generation == 2


async def test_two_that_take_hold_in_the_same_moment_leave_one_record_and_no_refusal(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        story = Story(h, waiting.id)
        await h.kill_worker("conductor")
        await pass_until(h, LATER)
        other = MigrationService(h.records, Room(h.records, config(h)), h.clock, h.planner, h.migrations._links)
        await asyncio.gather(*(service.take_hold(waiting.id) for service in (h.migrations, other)))
        assert story.taken() == 1
        assert h.vm(vm_id).migration_id == waiting.id
        h.start_worker("conductor")
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("number", range(1, 10))
async def test_a_server_killed_after_any_write_is_followed_by_the_next(tmp_path: Path, number: int) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        story = Story(h, waiting.id)
        strike = await killed_after_write(h, number)
        await almost(h)
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        strike.cancel()
        assert story.taken() == 1
        assert await h.check_peace(vm_id) == "b"


class Flaky:
    """The store's `commit`, which fails the first time a migration takes hold: before it is written, or after."""

    def __init__(self, h: House, migration_id: str, *, written: bool, kills: bool) -> None:
        self._house, self._key = h, MIGRATIONS.key(migration_id)
        self._commit = h.records.store.commit
        self._written, self._kills = written, kills
        self.failed = 0

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        held = [op for op in ops if isinstance(op, Put) and op.key == self._key]
        holds = [op for op in held if msgspec.json.decode(op.value, type=Migration).holds]
        if not holds or self.failed:
            return await self._commit(ops, expect)
        self.failed += 1
        if self._written:
            await self._commit(ops, expect)
        if self._kills:
            asyncio.get_running_loop().call_soon(self._kill)
            await asyncio.Event().wait()  # until its server is dead
        raise StoreUnavailable("the answer was lost")

    def _kill(self) -> None:
        self.replaced = asyncio.create_task(self._house.replace_worker("conductor"))


@pytest.mark.parametrize("kills", [False, True], ids=["words-lost", "server-killed"])
@pytest.mark.parametrize("written", [False, True], ids=["unwritten", "written"])
async def test_a_hold_of_unknown_outcome_is_there_or_is_taken_again(
    tmp_path: Path, written: bool, kills: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        story, flaky = Story(h, waiting.id), Flaky(h, waiting.id, written=written, kills=kills)
        monkeypatch.setattr(h.records.store, "commit", flaky.commit)
        await almost(h)
        assert await h.ended(waiting.id) is MigrationState.COMPLETED
        assert (flaky.failed, story.taken()) == (1, 1)
        assert await h.check_peace(vm_id) == "b"


async def test_one_cancelled_in_the_moment_it_takes_hold_is_taken_back_or_never_held(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        waiting = await ask(h, vm_id, starts_at=LATER)
        await h.kill_worker("conductor")
        await pass_until(h, LATER)
        await asyncio.gather(
            h.migrations.take_hold(waiting.id), h.migrations.cancel(waiting.id, None, once(h)), return_exceptions=False
        )
        h.start_worker("conductor")
        assert await h.ended(waiting.id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"


async def test_a_record_from_before_that_waits_and_holds_its_vm_begins_as_it_would_have(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        stored, now = h.records.find(VMS, vm_id), h.clock.wall()
        old = Migration(
            id=h.records.new_id(),
            vm_id=vm_id,
            vm_name=stored.record.name,
            kind=MigrationKind.LIVE,
            strategy=Strategy.PRECOPY,
            source_node=stored.record.node_id,
            target_node=h.cluster["b"].node_id,
            generation=1,
            state=MigrationState.PENDING,
            not_before=LATER,
            created_at=now,
            updated_at=now,
        )
        assert not {b"holds", b"request"} & set(msgspec.json.decode(msgspec.json.encode(old)))
        held = msgspec.structs.replace(stored.record, migration_id=old.id)
        await h.records.commit(create(MIGRATIONS, old), update(VMS, stored, held))
        await almost(h)
        assert h.vm(vm_id).migration_id == old.id
        await h.replace_worker("conductor")
        assert await h.ended(old.id) is MigrationState.COMPLETED
        assert (h.migration(old.id).began_at or START) >= LATER
        assert await h.check_peace(vm_id) == "b"


async def trouble(h: House, rng: random.Random, waiting_id: str) -> None:
    """One thing that may happen to a VM, its move or its servers, at a moment that may be any."""
    vm_id = h.migration(waiting_id).vm_id
    match rng.randrange(7):
        case 0:
            await h.replace_worker(rng.choice(["conductor", "reconciler"]))
        case 1:
            await occupied(h, vm_id)
            await h.clock.advance(rng.random() * 20)
            await let_go(h, vm_id)
        case 2:
            await h.migrations.cancel(waiting_id, None, once(h))
        case 3:
            await ask(h, vm_id)
        case 4:
            await vms(h).stop(vm_id, StopRequest(force=True), "admin", None, once(h))
        case 5:
            name = rng.choice("ab")
            await h.cluster.disconnect(name)
            await h.clock.advance(rng.random() * 5)
            await h.cluster.connect(name)
        case _:
            await vms(h).delete(vm_id, "admin", None, force=True)


@pytest.mark.parametrize("seed", range(SEEDS // 2))
async def test_whatever_happens_around_its_time_a_vm_is_held_by_what_moves_it_alone(tmp_path: Path, seed: int) -> None:
    """Two servers, three VMs, troubles before and after the moment: each move ends, none is left holding anything."""
    rng = random.Random(seed)
    async with house(tmp_path, seed=seed) as h, second_server(h):
        vm_ids = [await h.running_vm("a") for _ in range(3)]
        asked = [(await ask(h, vm_id, starts_at=LATER)).id for vm_id in vm_ids]
        stories = [Story(h, one) for one in asked]
        await pass_until(h, LATER - datetime.timedelta(seconds=5))
        for _ in range(rng.randint(1, 6)):
            await h.clock.advance(rng.random() * 3)
            with contextlib.suppress(NovaCronError):  # refused: nothing changed
                await trouble(h, rng, rng.choice(asked))
        await pass_until(h, LATER + datetime.timedelta(seconds=PATIENCE_S + 2 * holder.LOOK_S))
        await h.until(lambda: all(is_final(one.record) for one in h.records.all(MIGRATIONS)), "all have ended")
        assert h.cluster.world.violations == []
        for one, story in zip(asked, stories, strict=True):
            assert story.taken() == h.migration(one).holds
            assert h.migration(one).holds or h.migration(one).state in (MigrationState.CANCELLED, MigrationState.FAILED)
            assert h.migration(one).holds or not h.migration(one).began
        held = [stored.record.migration_id for stored in h.records.all(VMS)]
        assert set(held) <= {""}
