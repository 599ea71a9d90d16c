"""The store contract, as tests: every store passes this file unchanged (a new one joins STORES)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novacron.clock import SystemClock
from novacron.control.store.base import (
    MAX_COMMIT_BYTES,
    MAX_KEY_BYTES,
    MAX_OPS,
    MAX_VALUE_BYTES,
    Change,
    Delete,
    Expect,
    Put,
    Store,
)
from novacron.control.store.etcd import EtcdStore
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import Compacted, CompareFailed, InvalidInput, StoreUnavailable
from tests.etcd_members import Members, members, settled

pytestmark = pytest.mark.anyio

OpenStore = Callable[[], Awaitable[Store]]
PATIENCE_S = 20.0


def _sqlite(request: pytest.FixtureRequest) -> OpenStore:
    directory = request.getfixturevalue("tmp_path")
    numbers = itertools.count()
    return lambda: SqliteStore.open(directory / f"{next(numbers)}.db", durable=False)


_prefixes = itertools.count()


def _etcd(request: pytest.FixtureRequest) -> OpenStore:
    """Each store under a prefix of its own in one etcd, whose revisions so count what others write, too."""
    server: Members = request.getfixturevalue("etcd")
    return lambda: EtcdStore.open(server.address(f"test/{next(_prefixes)}"), SystemClock(), random.Random())


STORES: dict[str, Callable[[pytest.FixtureRequest], OpenStore]] = {"sqlite": _sqlite, "etcd": _etcd}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=STORES)
async def open_store(request: pytest.FixtureRequest) -> AsyncIterator[OpenStore]:
    """Opens a store that nobody has written, as often as called; all are closed at the end."""
    make = STORES[request.param](request)
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(settled)

        async def open_one() -> Store:
            one = await make()
            opened.push_async_callback(one.close)
            return one

        yield open_one


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


async def take(count: int, watch: AsyncIterator[tuple[Change, ...]]) -> list[tuple[Change, ...]]:
    """The next items of a watch."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(watch) for _ in range(count)]


@contextlib.asynccontextmanager
async def watching(store: Store, prefix: str, after: int) -> AsyncIterator[AsyncIterator[tuple[Change, ...]]]:
    watch = store.watch(prefix, after=after)
    try:
        yield watch
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


async def put_all(store: Store, keys: Iterable[str]) -> None:
    for key in keys:
        await store.commit([Put(key, key.encode())])


def keys_of(page: Any) -> list[str]:
    return [entry.key for entry in page.entries]


# -- get and commit ---------------------------------------------------------------------------------------------


async def test_a_record_carries_the_revisions_that_made_and_last_changed_it(store: Store) -> None:
    made = await store.commit([Put("a", b"1")])
    changed = await store.commit([Put("a", b"2")])
    entry = await store.get("a")
    assert entry is not None
    assert (entry.value, entry.created, entry.modified) == (b"2", made, changed)
    assert changed > made > 0


async def test_an_absent_key_is_none(store: Store) -> None:
    await store.commit([Put("ab", b"1")])
    assert await store.get("a") is None
    assert await store.get("abc") is None


async def test_a_deleted_key_is_gone_and_starts_anew(store: Store) -> None:
    await store.commit([Put("a", b"1")])
    deleted = await store.commit([Delete("a")])
    assert await store.get("a") is None
    made = await store.commit([Put("a", b"2")])
    entry = await store.get("a")
    assert entry is not None
    assert entry.created == entry.modified == made > deleted


async def test_one_transaction_is_one_revision(store: Store) -> None:
    revision = await store.commit([Put("a", b"1"), Put("b", b"2"), Put("c", b"3")])
    page = await store.list("")
    assert {entry.modified for entry in page.entries} == {revision}
    assert await store.revision() == page.revision == revision


async def test_changing_nothing_makes_no_revision(store: Store) -> None:
    revision = await store.commit([Put("a", b"1")])
    assert await store.commit([Delete("absent")]) == revision
    assert await store.commit([]) == revision
    assert await store.commit([], [Expect("a", revision)]) == revision
    assert await store.revision() == revision


async def test_putting_the_same_value_is_a_change(store: Store) -> None:
    first = await store.commit([Put("a", b"1")])
    assert await store.commit([Put("a", b"1")]) > first


async def test_a_store_never_written_has_revision_zero(store: Store) -> None:
    assert await store.revision() == 0
    assert (await store.list("")).entries == ()


async def test_values_are_bytes_of_any_kind(store: Store) -> None:
    for value in (b"", b"\x00", bytes(range(256)), b"x" * MAX_VALUE_BYTES):
        await store.commit([Put("v", value)])
        entry = await store.get("v")
        assert entry is not None
        assert entry.value == value


# -- expectations -----------------------------------------------------------------------------------------------


async def test_expecting_the_revision_or_the_absence(store: Store) -> None:
    made = await store.commit([Put("a", b"1")], [Expect("a", 0)])
    changed = await store.commit([Put("a", b"2")], [Expect("a", made)])
    with pytest.raises(CompareFailed):
        await store.commit([Put("a", b"3")], [Expect("a", made)])
    with pytest.raises(CompareFailed):
        await store.commit([Put("a", b"3")], [Expect("a", 0)])
    with pytest.raises(CompareFailed):
        await store.commit([Put("b", b"3")], [Expect("b", changed)])
    entry = await store.get("a")
    assert entry is not None
    assert entry.value == b"2"


async def test_a_lost_comparison_applies_nothing_of_the_transaction(store: Store) -> None:
    revision = await store.commit([Put("a", b"1"), Put("z", b"1")])
    with pytest.raises(CompareFailed):
        await store.commit(
            [Put("a", b"2"), Delete("z"), Put("n", b"1")], [Expect("z", revision), Expect("n", revision)]
        )
    assert [(entry.key, entry.value) for entry in (await store.list("")).entries] == [("a", b"1"), ("z", b"1")]
    assert await store.revision() == revision


async def test_a_lost_comparison_disturbs_no_neighbour(store: Store) -> None:
    """Queued at once, so that a store that groups transactions groups these."""
    attempts = [store.commit([Put(f"k{number}", b"")], [Expect("nobody", number % 2)]) for number in range(40)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    won = [outcome for outcome in outcomes[::2] if isinstance(outcome, int)]
    assert len(set(won)) == 20
    assert all(isinstance(outcome, CompareFailed) for outcome in outcomes[1::2])
    assert len((await store.list("k")).entries) == 20


async def test_each_of_many_concurrent_increments_counts_once(store: Store) -> None:
    async def increment(times: int) -> None:
        while times:
            entry = await store.get("counter")
            value, expect = (int(entry.value), entry.modified) if entry else (0, 0)
            try:
                await store.commit([Put("counter", str(value + 1).encode())], [Expect("counter", expect)])
                times -= 1
            except CompareFailed:
                continue

    await asyncio.gather(*(increment(10) for _ in range(8)))
    entry = await store.get("counter")
    assert entry is not None
    assert int(entry.value) == 80


# -- bounds -----------------------------------------------------------------------------------------------------


async def test_what_is_in_bounds_is_taken(store: Store) -> None:
    await store.commit([Put("k" * MAX_KEY_BYTES, b"v")])
    await store.commit([Put(f"k{number}", b"") for number in range(MAX_OPS)])
    first = await store.list("")
    rest = await store.list("", after=first.entries[-1].key)
    assert len(first.entries) + len(rest.entries) == MAX_OPS + 1
    keys = ["big" + "k" * (MAX_KEY_BYTES - 7) + f"{number:04}" for number in range(MAX_OPS)]
    much = [Put(key, b"x" * (MAX_COMMIT_BYTES // MAX_OPS)) for key in keys]
    made = await store.commit(much, [Expect(key, 0) for key in keys])
    changed = await store.commit([Put(one.key, one.value[1:]) for one in much], [Expect(key, made) for key in keys])
    async with watching(store, "big", made - 1) as watch:
        first_item, second_item = await take(2, watch)
    assert [(change.key, change.previous) for change in first_item] == [(key, None) for key in keys]
    assert [(change.key, change.previous) for change in second_item] == [(one.key, one.value) for one in much]
    await store.commit([Delete(key) for key in keys], [Expect(key, changed) for key in keys])
    assert (await store.list("big")).entries == ()


@pytest.mark.parametrize(
    "ops",
    [
        [Put("k" * (MAX_KEY_BYTES + 1), b"")],
        [Put("ü" * (MAX_KEY_BYTES // 2) + "k", b"")],
        [Put("", b"")],
        [Delete("")],
        [Put("\ud800", b"")],
        [Put("k", b"x" * (MAX_VALUE_BYTES + 1))],
        [Put("k", b"1"), Put("k", b"2")],
        [Put("k", b"1"), Delete("k")],
        [Put(f"k{number}", b"") for number in range(MAX_OPS + 1)],
        [Put(f"k{number}", b"x" * MAX_VALUE_BYTES) for number in range(MAX_COMMIT_BYTES // MAX_VALUE_BYTES + 1)],
    ],
    ids=["long", "long-in-bytes", "empty", "empty-delete", "surrogate", "value", "twice", "put-delete", "many", "much"],
)
async def test_what_is_out_of_bounds_is_refused_whole(store: Store, ops: list[Put | Delete]) -> None:
    with pytest.raises(InvalidInput):
        await store.commit([Put("good", b""), *ops])
    assert await store.revision() == 0
    assert await store.get("good") is None


# -- list -------------------------------------------------------------------------------------------------------


async def test_list_is_in_the_order_of_utf8_bytes(store: Store) -> None:
    keys = ["a", "a!", "a/", "a/b", "aa", "b", "\x00", "é", "\uffff", "\U00010000", "\U0010ffff", "z"]
    await put_all(store, reversed(keys))
    assert keys_of(await store.list("")) == sorted(keys, key=str.encode)


async def test_a_prefix_is_text_and_no_pattern(store: Store) -> None:
    await put_all(store, ["a%b", "a%c", "axb", "a_b", "a", "b", "A%b"])
    assert keys_of(await store.list("a%")) == ["a%b", "a%c"]
    assert keys_of(await store.list("a_")) == ["a_b"]


@pytest.mark.parametrize("last", ["\x7f", "\u07ff", "\uffff", "\U0010ffff"])
async def test_a_prefix_that_ends_in_a_last_character(store: Store, last: str) -> None:
    inside = [f"p{last}", f"p{last}a", f"p{last}{last}", f"p{last}\U0010ffff\U0010ffff"]
    await put_all(store, [*inside, "p", "pa", "q"])
    assert sorted(keys_of(await store.list(f"p{last}"))) == sorted(inside)


async def test_pages_join_up_to_the_whole(store: Store) -> None:
    keys = [f"k/{number:03}" for number in range(25)]
    await put_all(store, [*keys, "j", "l"])
    found, after, more = [], "", True
    while more:
        page = await store.list("k/", after=after, limit=10)
        assert len(page.entries) <= 10
        found += keys_of(page)
        after, more = found[-1], page.more
    assert found == keys


async def test_more_is_told_only_when_there_is_more(store: Store) -> None:
    await put_all(store, ["k1", "k2", "k3"])
    assert (await store.list("k", limit=2)).more
    assert not (await store.list("k", limit=3)).more
    assert not (await store.list("k", after="k1", limit=2)).more


async def test_after_need_not_exist_nor_lie_under_the_prefix(store: Store) -> None:
    await put_all(store, ["k1", "k2", "k2x", "k3"])
    assert keys_of(await store.list("k", after="k1zzz")) == ["k2", "k2x", "k3"]
    assert keys_of(await store.list("k", after="k2")) == ["k2x", "k3"]
    assert keys_of(await store.list("k", after="a")) == ["k1", "k2", "k2x", "k3"]
    assert keys_of(await store.list("k", after="z")) == []


# -- watch ------------------------------------------------------------------------------------------------------


async def test_a_watch_tells_what_happened_in_order_and_none_twice(store: Store) -> None:
    await store.commit([Put("before", b"")])
    start = await store.revision()
    async with watching(store, "", start) as watch:
        first = await store.commit([Put("a", b"1")])
        second = await store.commit([Put("a", b"2")])
        third = await store.commit([Delete("a")])
        assert await take(3, watch) == [
            (Change(first, 0, "a", b"1", None),),
            (Change(second, 0, "a", b"2", b"1"),),
            (Change(third, 0, "a", None, b"2"),),
        ]
        fourth = await store.commit([Put("b", b"")])
        assert await take(1, watch) == [(Change(fourth, 0, "b", b"", None),)]


async def test_all_changes_of_a_transaction_are_one_item_in_its_order(store: Store) -> None:
    await store.commit([Put("x", b"0")])
    start = await store.revision()
    revision = await store.commit([Put("c", b"1"), Delete("absent"), Delete("x"), Put("a", b"2")])
    async with watching(store, "", start) as watch:
        assert await take(1, watch) == [
            (
                Change(revision, 0, "c", b"1", None),
                Change(revision, 1, "x", None, b"0"),
                Change(revision, 2, "a", b"2", None),
            )
        ]


async def test_a_watch_tells_only_of_its_prefix(store: Store) -> None:
    async with watching(store, "vms/", 0) as watch:
        await store.commit([Put("nodes/1", b""), Put("vms", b"")])
        await store.commit([Put("nodes/2", b""), Put("vms/1", b""), Put("vms0", b"")])
        await store.commit([Put("vms/2", b"")])
        items = await take(2, watch)
    assert [[change.key for change in item] for item in items] == [["vms/1"], ["vms/2"]]


async def test_a_lost_comparison_is_not_told(store: Store) -> None:
    async with watching(store, "", 0) as watch:
        with pytest.raises(CompareFailed):
            await store.commit([Put("a", b"lost")], [Expect("a", 77)])
        await store.commit([Delete("absent")])
        await store.commit([Put("b", b"")])
        ((change,),) = await take(1, watch)
    assert change.key == "b"


async def test_a_watch_resumes_from_any_revision(store: Store) -> None:
    revisions = [await store.commit([Put(f"k{number}", b"")]) for number in range(10)]
    for place, revision in enumerate(revisions[:-1]):
        async with watching(store, "", revision) as watch:
            items = await take(9 - place, watch)
        assert [item[0].revision for item in items] == revisions[place + 1 :]


async def test_a_watch_that_waits_hears_of_the_next_change(store: Store) -> None:
    async with watching(store, "", 0) as watch:
        waiting = asyncio.create_task(take(1, watch))
        for _ in range(5):
            await asyncio.sleep(0)  # let it read the log and find nothing
        assert not waiting.done()
        revision = await store.commit([Put("a", b"")])
        assert (await waiting)[0][0].revision == revision


async def test_a_slow_watch_misses_nothing_of_much(store: Store) -> None:
    """More than any store would hold in memory for it: big values, and changes elsewhere in between."""
    big = b"x" * (MAX_VALUE_BYTES // 2)
    async with watching(store, "w/", 0) as watch:
        await store.commit([Put("w/first", b"")])
        await take(1, watch)
        revisions = []
        for number in range(30):
            revisions.append(await store.commit([Put(f"w/{number % 3}", big), Put("other", b"")]))
            await asyncio.gather(*(store.commit([Put(f"o/{other}", b"")]) for other in range(40)))
        items = await take(30, watch)
    assert [item[0].revision for item in items] == revisions
    assert all(len(item) == 1 for item in items)


async def test_two_watches_hear_the_same(store: Store) -> None:
    async with watching(store, "", 0) as one, watching(store, "", 0) as other:
        await asyncio.gather(*(store.commit([Put(f"k{number % 7}", b"")]) for number in range(50)))
        assert await take(50, one) == await take(50, other)


async def test_a_watch_sees_no_change_before_readers_do(store: Store) -> None:
    async with watching(store, "", 0) as watch:
        for number in range(20):
            writing = asyncio.create_task(store.commit([Put("k", str(number).encode())]))
            ((change,),) = await take(1, watch)
            entry = await store.get("k")
            assert entry is not None
            assert entry.modified >= change.revision
            await writing


async def test_compaction_forgets_changes_and_no_record(store: Store) -> None:
    revisions = [await store.commit([Put(f"k{number}", b"")]) for number in range(6)]
    await store.compact(revisions[2])
    assert len((await store.list("k")).entries) == 6
    async with watching(store, "", revisions[2]) as watch:
        assert [item[0].revision for item in await take(3, watch)] == revisions[3:]
    for after in (0, revisions[1]):
        async with watching(store, "", after) as watch:
            with pytest.raises(Compacted):
                await take(1, watch)
    await store.compact(revisions[1])  # again, and older: fine
    assert await store.commit([Put("next", b"")]) > revisions[-1]


async def test_everything_may_be_compacted(store: Store) -> None:
    revision = await store.commit([Put("a", b"1")])
    await store.compact(revision)
    assert await store.revision() == revision
    async with watching(store, "", revision) as watch:
        later = await store.commit([Put("a", b"2")])
        assert (await take(1, watch))[0][0].revision == later


async def test_a_watch_that_fell_behind_a_compaction_is_told(store: Store) -> None:
    async with watching(store, "", 0) as watch:
        await store.commit([Put("a", b"")])
        await take(1, watch)
        last = [await store.commit([Put(f"k{number}", b"")]) for number in range(5)][-1]
        await store.compact(last)
        with pytest.raises(Compacted):
            await take(1, watch)


# -- close ------------------------------------------------------------------------------------------------------


async def test_close_ends_watches_and_refuses_the_rest(store: Store) -> None:
    await store.commit([Put("a", b"")])
    start = await store.revision()

    async def follow() -> list[tuple[Change, ...]]:
        return [item async for item in store.watch("", after=start)]

    followers = [asyncio.create_task(follow()) for _ in range(3)]
    await store.commit([Put("b", b"")])
    await store.close()
    await store.close()
    async with asyncio.timeout(PATIENCE_S):
        for heard in await asyncio.gather(*followers):
            assert [item[0].key for item in heard] in (["b"], [])
    for refused in (store.get("a"), store.list(""), store.commit([Put("c", b"")]), store.revision()):
        with pytest.raises(StoreUnavailable):
            await refused


async def test_close_finishes_what_was_asked_before(store: Store) -> None:
    writes = [asyncio.create_task(store.commit([Put(f"k{number}", b"")])) for number in range(20)]
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(PATIENCE_S):
        outcomes = await asyncio.gather(*writes)
    assert len(set(outcomes)) == 20


# -- against a model --------------------------------------------------------------------------------------------

_keys = st.text(alphabet="ab%_/é\U0010ffff", min_size=1, max_size=3)
_ops = st.lists(
    st.one_of(st.builds(Put, _keys, st.binary(max_size=4)), st.builds(Delete, _keys)),
    max_size=4,
    unique_by=lambda op: op.key,
)
_steps = st.lists(st.tuples(_ops, st.lists(st.tuples(_keys, st.booleans()), max_size=2)), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps, prefix=st.one_of(st.just(""), _keys))
async def test_it_behaves_like_a_dict(
    open_store: OpenStore, steps: list[tuple[list[Put | Delete], list[tuple[str, bool]]]], prefix: str
) -> None:
    """model: key → (value, created, modified); each transaction may expect keys rightly or wrongly."""
    store = await open_store()
    model: dict[str, tuple[bytes, int, int]] = {}
    told: list[list[tuple[str, bytes | None, bytes | None]]] = []
    for ops, expectations in steps:
        expect = [Expect(key, model.get(key, (b"", 0, 0))[2] + (0 if right else 1)) for key, right in expectations]
        if not all(right for _, right in expectations):
            with pytest.raises(CompareFailed):
                await store.commit(ops, expect)
            continue
        revision = await store.commit(ops, expect)
        changes: list[tuple[str, bytes | None, bytes | None]] = []
        for op in ops:
            before = model.get(op.key)
            if isinstance(op, Put):
                model[op.key] = (op.value, before[1] if before else revision, revision)
                changes.append((op.key, op.value, before[0] if before else None))
            elif before is not None:
                del model[op.key]
                changes.append((op.key, None, before[0]))
        if mine := [change for change in changes if change[0].startswith(prefix)]:
            told.append(mine)
    listed = [(e.key, e.value, e.created, e.modified) for e in (await store.list(prefix)).entries]
    assert listed == sorted(
        ((key, *rest) for key, rest in model.items() if key.startswith(prefix)), key=lambda row: row[0].encode()
    )
    async with watching(store, prefix, 0) as watch:
        items = await take(len(told), watch)
    assert [[(change.key, change.value, change.previous) for change in item] for item in items] == told
    await store.close()
