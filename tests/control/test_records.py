"""The record cache: callers read their own writes, names are unique, listeners hear of everything once and in order."""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.store.base import Page, Put, Store
from novacron.control.store.kinds import IMAGES, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import Records, Seen, create, remove, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import CompareFailed, NameTaken, NotFound, StoreCorrupt, StoreUnavailable
from novacron.model.event import ObjectType
from novacron.model.image import Image, ImageState
from novacron.model.machine import MachineReport, MachineStatus, NetworkKind, Nic
from novacron.model.vm import Desired, Vm, VmSpec
from novacron.model.volume import Volume, VolumeTask

pytestmark = pytest.mark.anyio

NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
PATIENCE_S = 20.0


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    one = await SqliteStore.open(tmp_path / "store.db", durable=False)
    yield one
    await one.close()


@pytest.fixture
async def records(store: SqliteStore) -> AsyncIterator[Records]:
    one = await started(store)
    yield one
    await one.stop()


async def started(store: Store, seed: int = 1) -> Records:
    one = Records(store, SystemClock(), random.Random(seed))
    await one.start()
    return one


def image(records: Records, name: str, description: str = "") -> Image:
    return Image(
        id=records.new_id(),
        name=name,
        state=ImageState.PENDING,
        created_at=NOW,
        updated_at=NOW,
        description=description,
    )


def renamed(name: str) -> Callable[[Image], Image]:
    return lambda record: msgspec.structs.replace(record, name=name)


def vm(records: Records, name: str) -> Vm:
    spec = VmSpec(image_id=records.new_id())
    return Vm(id=records.new_id(), name=name, spec=spec, desired=Desired.RUNNING, created_at=NOW, updated_at=NOW)


def volume(records: Records, name: str, vm_id: str) -> Volume:
    return Volume(
        id=records.new_id(),
        name=name,
        pool_id="default",
        size_bytes=1 << 20,
        vm_id=vm_id,
        created_at=NOW,
        updated_at=NOW,
    )


def given_to(vm_id: str) -> Callable[[Volume], Volume]:
    return lambda record: msgspec.structs.replace(record, vm_id=vm_id)


# -- reading ----------------------------------------------------------------------------------------------------


async def test_a_write_is_read_at_once_by_who_wrote_it(records: Records) -> None:
    for number in range(20):
        stored = await records.create(IMAGES, image(records, f"i{number}"))
        assert records.get(IMAGES, stored.record.id) == stored
        assert records.find(IMAGES, f"i{number}") == stored
        assert records.revision >= stored.modified


async def test_the_etag_is_the_revision_of_the_last_change(records: Records, store: SqliteStore) -> None:
    made = await records.create(IMAGES, image(records, "a"))
    changed = await records.change(IMAGES, made.record.id, renamed("b"))
    assert changed is not None
    entry = await store.get(IMAGES.key(made.record.id))
    assert entry is not None
    assert (entry.created, entry.modified) == (made.modified, changed.modified)
    assert records.find(IMAGES, made.record.id).modified == changed.modified


async def test_find_by_id_or_name_within_one_kind(records: Records) -> None:
    one = (await records.create(IMAGES, image(records, "a"))).record
    assert records.find(IMAGES, one.id).record == records.find(IMAGES, "a").record == one
    for ref in ("b", records.new_id(), ""):
        with pytest.raises(NotFound):
            records.find(IMAGES, ref)
    for ref in ("a", one.id):
        with pytest.raises(NotFound):
            records.find(VMS, ref)


async def test_pages_are_in_order_of_birth_and_join_up(records: Records) -> None:
    made = [(await records.create(IMAGES, image(records, f"i{number}"))).record for number in range(23)]
    found: list[Image] = []
    after, more = "", True
    while more:
        page, more = records.page(IMAGES, after=after, limit=5)
        assert len(page) <= 5
        found += [stored.record for stored in page]
        after = found[-1].id
    assert found == sorted(made, key=lambda one: one.id) == [stored.record for stored in records.all(IMAGES)]


async def test_the_records_of_one_vm_are_found_oldest_first_and_follow_their_vm(
    records: Records, store: SqliteStore
) -> None:
    one, other = records.new_id(), records.new_id()
    made = [(await records.create(VOLUMES, volume(records, f"v{n}", (one, other, "")[n % 3]))).record for n in range(9)]
    mine = sorted((record for record in made if record.vm_id == one), key=lambda record: record.id)
    loose = next(record for record in made if not record.vm_id)
    assert [stored.record for stored in records.of_vm(VOLUMES, one)] == mine
    assert records.of_vm(VOLUMES, records.new_id()) == records.of_vm(VOLUMES, "") == []
    assert records.of_vm(SNAPSHOTS, one) == []

    await records.change(VOLUMES, mine[1].id, given_to(other))
    await records.change(VOLUMES, mine[2].id, given_to(""))
    await records.change(VOLUMES, loose.id, given_to(one))
    await records.change(VOLUMES, mine[0].id, lambda record: msgspec.structs.replace(record, description="same VM"))
    await records.commit(remove(VOLUMES, records.find(VOLUMES, "v1")))  # the other's oldest

    late = await started(store, 2)
    for cache in (records, late):  # one that saw the changes, one that read what came of them
        for vm_id in (one, other):
            looked_for = [stored for stored in cache.all(VOLUMES) if stored.record.vm_id == vm_id]
            assert cache.of_vm(VOLUMES, vm_id) == looked_for
        assert {stored.record.id for stored in cache.of_vm(VOLUMES, one)} == {mine[0].id, loose.id}
        assert len(cache.of_vm(VOLUMES, other)) == 3
    await late.stop()


async def test_pages_of_one_vm_hold_its_records_alone(records: Records) -> None:
    mine = records.new_id()
    for number in range(9):
        await records.create(VOLUMES, volume(records, f"v{number}", "" if number % 3 else mine))
    first, more = records.page(VOLUMES, after="", limit=2, vm_id=mine)
    rest, no_more = records.page(VOLUMES, after=first[-1].record.id, limit=2, vm_id=mine)
    assert [*first, *rest] == records.of_vm(VOLUMES, mine)
    assert (len(first), more, len(rest), no_more) == (2, True, 1, False)
    assert records.page(VOLUMES, after="", limit=9, vm_id=records.new_id()) == ([], False)


async def test_a_page_counts_only_what_matches(records: Records) -> None:
    for number in range(20):
        await records.create(IMAGES, image(records, f"i{number}", description="odd" if number % 2 else ""))
    page, more = records.page(IMAGES, after="", limit=10, match=lambda one: one.description == "odd")
    assert (len(page), more) == (10, False)
    page, more = records.page(IMAGES, after="", limit=9, match=lambda one: one.description == "odd")
    assert (len(page), more) == (9, True)


# -- names ------------------------------------------------------------------------------------------------------


async def test_a_name_is_taken_once_in_its_kind(records: Records) -> None:
    await records.create(IMAGES, image(records, "a"))
    with pytest.raises(NameTaken, match="'a' is taken by another image"):
        await records.create(IMAGES, image(records, "a"))
    await records.create(VMS, vm(records, "a"))  # another kind
    assert len(records.all(IMAGES)) == 1


async def test_of_many_who_want_a_name_one_gets_it(records: Records) -> None:
    outcomes = await asyncio.gather(
        *(records.create(IMAGES, image(records, "a")) for _ in range(30)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, NameTaken) for outcome in outcomes) == 29


async def test_creating_a_record_twice_is_no_question_of_names(records: Records) -> None:
    one = image(records, "a")
    await records.create(IMAGES, one)
    with pytest.raises(CompareFailed):
        await records.create(IMAGES, one)


async def test_a_rename_frees_the_old_name_and_takes_the_new(records: Records) -> None:
    one = (await records.create(IMAGES, image(records, "a"))).record
    other = (await records.create(IMAGES, image(records, "b"))).record
    with pytest.raises(NameTaken, match="'b'"):
        await records.change(IMAGES, one.id, renamed("b"))
    await records.change(IMAGES, one.id, renamed("c"))
    assert records.find(IMAGES, "c").record.id == one.id
    with pytest.raises(NotFound):
        records.find(IMAGES, "a")
    await records.change(IMAGES, other.id, renamed("a"))
    assert records.find(IMAGES, "a").record.id == other.id
    await records.create(IMAGES, image(records, "b"))


async def test_a_removed_record_frees_its_name(records: Records) -> None:
    made = await records.create(IMAGES, image(records, "a"))
    await records.commit(remove(IMAGES, made))
    assert records.get(IMAGES, made.record.id) is None
    assert records.all(IMAGES) == []
    again = await records.create(IMAGES, image(records, "a"))
    assert records.find(IMAGES, "a").record == again.record


# -- writing ----------------------------------------------------------------------------------------------------


async def test_several_writes_stand_or_fall_together(records: Records) -> None:
    one = await records.create(IMAGES, image(records, "one"))
    two = await records.create(VMS, vm(records, "two"))
    newer = await records.change(IMAGES, one.record.id, renamed("newer"))
    assert newer is not None
    with pytest.raises(CompareFailed):
        await records.commit(remove(VMS, two), unchanged(IMAGES, one))
    assert records.get(VMS, two.record.id) == two
    revision = await records.commit(
        remove(VMS, two), update(IMAGES, newer, msgspec.structs.replace(newer.record, name="two")), ops=[Put("x", b"")]
    )
    assert records.get(VMS, two.record.id) is None
    assert records.find(IMAGES, "two").modified == revision


async def test_a_change_is_made_again_on_the_newest_record(records: Records) -> None:
    """Two caches of one store, as two servers have: neither loses a count to the other."""
    other = await started(records.store, seed=2)
    one = (await records.create(IMAGES, image(records, "a", description="0"))).record
    await other.caught_up(records.revision)

    def count(record: Image) -> Image:
        return msgspec.structs.replace(record, description=str(int(record.description) + 1))

    changes = [who.change(IMAGES, one.id, count) for _ in range(50) for who in (records, other)]
    await asyncio.gather(*changes)
    assert records.find(IMAGES, "a").record.description == "100"
    await other.stop()


async def test_a_change_that_changes_nothing_writes_nothing(records: Records) -> None:
    one = await records.create(IMAGES, image(records, "a"))
    assert await records.change(IMAGES, one.record.id, lambda _: None) is None
    assert await records.change(IMAGES, one.record.id, lambda record: record) is None
    assert await records.store.revision() == one.modified


async def test_a_refusing_change_writes_nothing_and_passes_on_its_refusal(records: Records) -> None:
    one = await records.create(IMAGES, image(records, "a"))

    def refuse(_: Image) -> Image:
        raise CompareFailed("as if")

    with pytest.raises(CompareFailed, match="as if"):
        await records.change(IMAGES, one.record.id, refuse)
    with pytest.raises(NotFound):
        await records.change(IMAGES, records.new_id(), refuse)


# -- listeners --------------------------------------------------------------------------------------------------


async def test_listeners_hear_of_each_revision_once_in_order_when_the_cache_holds_it(records: Records) -> None:
    heard: list[Seen] = []

    def listen(changes: Sequence[Seen]) -> None:
        assert {change.revision for change in changes} == {records.revision}
        for change in changes:
            if change.now is not None:
                assert records.get(change.kind, change.now.id) == Stored(change.now, change.revision)
        heard.extend(changes)

    stop = records.subscribe(listen)
    one = await records.create(IMAGES, image(records, "a"))
    two = await records.change(IMAGES, one.record.id, renamed("b"))
    assert two is not None
    await records.commit(ops=[Put("elsewhere/1", b"")])
    last = await records.commit(remove(IMAGES, two), create(VMS, vm(records, "v")))
    stop()
    await records.create(IMAGES, image(records, "unheard"))
    assert [(seen.revision, seen.index, seen.kind.object_type) for seen in heard] == [
        (one.modified, 0, ObjectType.IMAGE),
        (two.modified, 0, ObjectType.IMAGE),
        (last, 0, ObjectType.IMAGE),
        (last, 2, ObjectType.VM),
    ]
    assert [(seen.before and seen.before.name, seen.now and seen.now.name) for seen in heard] == [
        (None, "a"),
        ("a", "b"),
        ("b", None),
        (None, "v"),
    ]


async def test_two_caches_of_one_store_become_the_same(records: Records) -> None:
    other = await started(records.store, seed=2)
    await asyncio.gather(
        *(who.create(IMAGES, image(who, f"{n}")) for n in range(30) for who in (records, other)), return_exceptions=True
    )
    revision = await records.store.revision()
    await asyncio.gather(records.caught_up(revision), other.caught_up(revision))
    assert records.all(IMAGES) == other.all(IMAGES)
    assert len(records.all(IMAGES)) == 30
    await other.stop()


# -- starting, stopping, losing the store -----------------------------------------------------------------------


async def test_a_restart_finds_everything(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "again.db", durable=False)
    records = await started(store)
    for number in range(1200):  # more than one page of the store
        await store.commit(
            [Put(IMAGES.key(one.id), msgspec.json.encode(one)) for one in [image(records, f"i{number}")]]
        )
    kept = await records.create(IMAGES, image(records, "kept"))
    await records.stop()
    await store.close()
    store = await SqliteStore.open(tmp_path / "again.db", durable=False)
    records = await started(store)
    assert len(records.all(IMAGES)) == 1201
    assert records.find(IMAGES, "kept") == kept
    assert records.revision == kept.modified
    with pytest.raises(NameTaken):
        await records.create(IMAGES, image(records, "kept"))
    await records.stop()
    await store.close()


async def test_starting_again_forgets_what_was_deleted_meanwhile(records: Records, store: SqliteStore) -> None:
    made = await records.create(IMAGES, image(records, "a"))
    await records.stop()
    other = await started(store, seed=2)
    await other.commit(remove(IMAGES, made))
    await other.stop()
    await records.start()
    assert records.all(IMAGES) == []


async def test_the_store_looks_for_a_page_while_the_one_before_is_taken_in(
    store: SqliteStore, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [image(records, f"i{number}") for number in range(700)]
    await records.commit(*(create(IMAGES, one) for one in made[:350]))
    await records.commit(*(create(IMAGES, one) for one in made[350:]))
    monkeypatch.setattr("novacron.control.store.records.PAGE", 600)
    late = Records(store, SystemClock(), random.Random(2))
    listed, known = store.list, list[int]()

    async def noting(prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        if prefix == IMAGES.prefix:
            known.append(len(late.all(IMAGES)))
        return await listed(prefix, after=after, limit=limit)

    monkeypatch.setattr(store, "list", noting)
    await late.start()
    assert late.all(IMAGES) == records.all(IMAGES)
    assert known[0] == 0
    assert known[1] < 600
    await late.stop()


class Distant(SqliteStore):
    """A store whose lists take a while, as those of a store behind a network do."""

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        for _ in range(20):
            await asyncio.sleep(0)
        page = await super().list(prefix, after=after, limit=2)
        for _ in range(20):
            await asyncio.sleep(0)
        return page


async def test_it_starts_while_others_write_without_end(tmp_path: Path) -> None:
    store = await Distant.open(tmp_path / "distant.db", durable=False)
    writer = await started(store)
    names = [f"i{number}" for number in range(5)]
    for name in names:
        await writer.create(IMAGES, image(writer, name, description="0"))
    stop = asyncio.Event()

    async def keep_writing(name: str) -> None:
        while not stop.is_set():
            stored = writer.find(IMAGES, name)
            if random.random() < 0.3:
                await writer.commit(remove(IMAGES, stored))
                await writer.create(IMAGES, image(writer, name, description="0"))
            else:
                more = str(int(stored.record.description) + 1)
                await writer.commit(update(IMAGES, stored, msgspec.structs.replace(stored.record, description=more)))

    writers = [asyncio.create_task(keep_writing(name)) for name in names]
    async with asyncio.timeout(PATIENCE_S):
        for seed in range(2, 12):
            late = await started(store, seed)
            await late.caught_up(writer.revision)
            await late.stop()
    stop.set()
    await asyncio.gather(*writers)
    late = await started(store, 99)
    assert late.all(IMAGES) == writer.all(IMAGES)
    await late.stop()
    await writer.stop()
    await store.close()


async def test_a_record_that_cannot_be_read_stops_the_start(store: SqliteStore) -> None:
    await store.commit([Put("images/x", b"{}")])
    with pytest.raises(StoreCorrupt, match="images/x") as refused:
        await started(store)
    assert "newer version" in refused.value.reasons[0].remedy


async def test_when_the_cache_loses_the_store_writers_are_told_and_none_waits_for_ever(
    records: Records, store: SqliteStore
) -> None:
    assert records.following
    waiting = asyncio.create_task(records.caught_up(10_000))
    await asyncio.sleep(0)
    await store.commit([Put("images/x", b"unreadable")])
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreUnavailable, match="lost the store"):
            await waiting
        with pytest.raises(StoreUnavailable, match="lost the store"):
            await records.create(IMAGES, image(records, "a"))
    assert not records.following


@pytest.mark.parametrize("slice_", [1, 2, 3, 100])
async def test_a_search_finds_what_a_page_does(records: Records, monkeypatch: pytest.MonkeyPatch, slice_: int) -> None:
    monkeypatch.setattr("novacron.control.store.records.SLICE", slice_)
    made = [await records.create(IMAGES, image(records, f"i{number}", str(number % 2))) for number in range(7)]

    def odd(one: Image) -> bool:
        return one.description == "1"

    for after in ("", made[1].record.id, made[6].record.id):
        for limit in (1, 2, 3, 4):
            expected = records.page(IMAGES, after=after, limit=limit, match=odd)
            assert await records.search(IMAGES, after=after, limit=limit, match=odd) == expected


def tagged(records: Records, name: str, labels: dict[str, str], node_id: str = "") -> Vm:
    return msgspec.structs.replace(vm(records, name), labels=labels, node_id=node_id)


@pytest.mark.parametrize(
    ("labels", "node_id", "looked_at"),
    [((("tier", "a"), ("all", "x")), "", 3), ((("all", "x"),), "n1", 2), ((("tier", "z"),), "", 0), ((), "", 9)],
)
async def test_a_search_by_label_or_node_looks_at_no_others(
    records: Records, labels: tuple[tuple[str, str], ...], node_id: str, looked_at: int
) -> None:
    for number in range(9):
        tags = {"tier": "abc"[number % 3], "all": "x"}
        await records.create(VMS, tagged(records, f"v{number}", tags, "n1" if number < 2 else ""))
    looked = 0

    def fits(one: Vm) -> bool:
        nonlocal looked
        looked += 1
        return all(one.labels.get(key) == value for key, value in labels) and (not node_id or one.node_id == node_id)

    expected = records.page(VMS, after="", limit=9, match=fits)
    looked = 0
    assert await records.search(VMS, after="", limit=9, match=fits, labels=labels, node_id=node_id) == expected
    assert looked == looked_at


async def test_records_are_found_by_the_labels_they_have_now(records: Records) -> None:
    rng = random.Random(3)

    def some() -> dict[str, str]:
        return {key: rng.choice("xy") for key in "ab" if rng.random() < 0.7}

    async def found(key: str, value: str) -> list[Stored[Vm]]:
        return (await records.search(VMS, after="", limit=99, match=lambda _: True, labels=((key, value),)))[0]

    held = [await records.create(VMS, tagged(records, f"v{number}", some())) for number in range(8)]
    for _ in range(40):
        one = records.find(VMS, rng.choice(held).record.id)
        if len(held) > 4 and rng.random() < 0.1:
            await records.commit(remove(VMS, one))
            held = records.all(VMS)
        else:
            await records.commit(update(VMS, one, msgspec.structs.replace(one.record, labels=some())))
        for key in "ab":
            for value in "xy":
                expected = [stored for stored in records.all(VMS) if stored.record.labels.get(key) == value]
                assert await found(key, value) == expected


async def test_what_has_a_task_is_found_among_all_others(records: Records) -> None:
    made = [volume(records, f"v{number}", "") for number in range(5)]
    for one in made:
        await records.create(VOLUMES, one)

    async def busied(one: Volume, task: VolumeTask | None) -> list[str]:
        await records.change(VOLUMES, one.id, lambda now: msgspec.structs.replace(now, task=task))
        return [stored.record.name for stored in records.busy(VOLUMES)]

    assert records.busy(VOLUMES) == []
    assert await busied(made[3], VolumeTask.CREATE) == ["v3"]
    assert await busied(made[1], VolumeTask.GROW) == ["v1", "v3"]
    assert await busied(made[3], VolumeTask.DELETE) == ["v1", "v3"]
    assert await busied(made[1], None) == ["v3"]
    await records.commit(remove(VOLUMES, records.find(VOLUMES, "v3")))
    assert records.busy(VOLUMES) == []
    assert records.busy(IMAGES) == []


async def test_others_act_while_very_many_records_are_searched(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novacron.control.store.records.SLICE", 2)
    for number in range(6):
        await records.create(IMAGES, image(records, f"i{number}"))
    searching = asyncio.create_task(records.search(IMAGES, after="", limit=9, match=lambda _: True))
    await asyncio.sleep(0)
    assert not searching.done()
    assert len((await searching)[0]) == 6


async def test_vms_are_found_by_the_networks_groups_and_addresses_of_their_cards(records: Records) -> None:
    def names(mark: str) -> list[str]:
        return [stored.record.name for stored in records.marked(VMS, mark)]

    def with_cards(one: Vm, *nics: Nic) -> Vm:
        return msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, nics=nics))

    card = Nic(id="c", mac="52:4e:43:00:00:01", network=NetworkKind.OVERLAY, network_id="net-1", security_groups=("g",))
    plain = Nic(id="d", mac="52:4e:43:00:00:02")
    first, second = vm(records, "first"), vm(records, "second")
    for one in (second, first):
        await records.create(VMS, with_cards(one, card))
    assert [names(mark) for mark in ("net-1", "g", card.mac, plain.mac)] == [["first", "second"]] * 3 + [[]]
    elsewhere = msgspec.structs.replace(card, network_id="net-2", security_groups=())
    await records.change(VMS, first.id, lambda one: with_cards(one, elsewhere, plain))
    assert [names(mark) for mark in ("net-1", "net-2", "g")] == [["second"], ["first"], ["second"]]
    assert names(card.mac) == ["first", "second"]
    assert names(plain.mac) == ["first"]

    def still_runs(one: Vm) -> Vm:
        report = MachineReport(vm_id=one.id, generation=1, status=MachineStatus.RUNNING, since=NOW)
        return msgspec.structs.replace(with_cards(one, plain), booted=one.spec, observed=report)

    await records.change(VMS, first.id, still_runs)
    assert names("net-2") == ["first"]  # it has the card until it ends
    stored = records.get(VMS, second.id)
    assert stored is not None
    await records.commit(remove(VMS, stored))
    assert [names(mark) for mark in ("net-1", "g", card.mac)] == [[], [], []]
    again = await started(records.store)
    assert [stored.record.name for stored in again.marked(VMS, plain.mac)] == ["first"]
    await again.stop()
