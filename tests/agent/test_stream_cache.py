"""The cache of pages: gives what it was given or nothing, however its file, its table or an image changed since."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.stream.cache import PageCache, Scope
from novacron.agent.stream.table import KEY_BYTES, WAYS, KeyTable, hasher, key_of
from novacron.errors import InvalidInput

PAGE = 4096


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[PageCache]:
    made = PageCache(tmp_path, 8 << 20)
    yield made
    made.close()


def keyed(scope: Scope, pages: list[bytes]) -> list[tuple[bytes, bytes]]:
    fresh = hasher(scope.secret)
    return [(key_of(fresh, page), page) for page in pages]


def some(seed: int, count: int) -> list[bytes]:
    dice = random.Random(seed)
    return [dice.randbytes(PAGE) for _ in range(count)]


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).filter(any), max_size=300))
def test_a_table_finds_the_newest_and_never_the_wrong(keys: list[bytes]) -> None:
    table = KeyTable(64)
    where: dict[int, bytes] = {}
    for key in keys:
        if table.find(key) is None:
            slot = table.room(key)
            table.put(slot, key)
            where[slot] = key
    for key in keys:
        slot = table.find(key)
        assert slot is None or where[slot] == key
    assert all(table.find(key) is not None for key in keys[-WAYS:])
    assert len(where) <= 64


def test_the_end_of_one_key_and_the_beginning_of_the_next_are_no_key() -> None:
    table = KeyTable(WAYS)
    for letters in (b"aaaaaabbbbbb", b"ccccccdddddd"):
        table.put(table.room(letters), letters)
    assert table.find(b"bbbbbbcccccc") is None
    assert table.find(b"ccccccdddddd") == 1


def test_pages_come_back(cache: PageCache) -> None:
    scope = cache.scope("one")
    pairs = keyed(scope, some(1, 500))
    scope.keep(pairs)
    assert scope.take([key for key, _ in pairs]) == [page for _, page in pairs]
    assert scope.take([key for key, _ in keyed(scope, some(2, 10))]) == [None] * 10


def test_it_stays_within_its_limit(cache: PageCache, tmp_path: Path) -> None:
    scope = cache.scope("one")
    for seed in range(12):
        scope.keep(keyed(scope, some(seed, 500)))
    kept = [page for seed in range(12) for page in scope.take([key for key, _ in keyed(scope, some(seed, 500))])]
    assert sum(page is not None for page in kept) <= 2048
    assert list(tmp_path.iterdir()) == [], "its file has no name that could be left behind"


def test_a_flipped_bit_in_the_file_makes_a_page_that_is_not_here(cache: PageCache) -> None:
    scope = cache.scope("one")
    pairs = keyed(scope, some(1, 50))
    scope.keep(pairs)
    size = os.fstat(cache.fileno()).st_size
    broken = os.pread(cache.fileno(), size, 0)
    os.pwrite(cache.fileno(), bytes(byte ^ 1 for byte in broken), 0)
    assert scope.take([key for key, _ in pairs]) == [None] * 50


def test_a_page_under_a_wrong_key_is_never_given(cache: PageCache) -> None:
    scope = cache.scope("one")
    (key, page), (_, other) = keyed(scope, some(1, 2))
    scope.keep([(key, other)])
    assert scope.take([key]) == [None]
    assert page != other


def test_scopes_know_nothing_of_each_other(cache: PageCache) -> None:
    one, two = cache.scope("one"), cache.scope("two")
    pages = some(1, 20)
    one.keep(keyed(one, pages))
    assert two.take([key for key, _ in keyed(two, pages)]) == [None] * 20
    assert two.take([key for key, _ in keyed(one, pages)]) == [None] * 20
    assert cache.scope("one") is one


def test_image_blocks_count_as_pages_until_they_change(cache: PageCache, tmp_path: Path) -> None:
    scope = cache.scope("one")
    pages = [*some(1, 600), bytes(PAGE)]
    image = tmp_path / "image"
    image.write_bytes(b"".join(pages) + b"a rest")
    scope.learn(image)
    keys = [key for key, _ in keyed(scope, pages)]
    assert scope.take(keys) == [*pages[:-1], None]
    with image.open("r+b") as out:
        out.seek(300 * PAGE)
        out.write(b"\xff" * PAGE)
    assert [page is None for page in scope.take(keys)].index(True) == 300
    scope.learn(image)
    assert scope.take([keys[7]]) == [pages[7]]
    scope.unlearn(image)
    assert scope.take(keys) == [None] * 601


def test_a_full_disk_ends_the_keeping_and_nothing_else(cache: PageCache) -> None:
    scope = cache.scope("one")
    first, later = keyed(scope, some(1, 4)), keyed(scope, some(2, 2000))
    scope.keep(first)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, before[1]))
    try:
        scope.keep(later)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    scope.keep(keyed(scope, some(3, 5)))
    assert scope.take([key for key, _ in first]) == [page for _, page in first]
    assert scope.take([key for key, _ in keyed(scope, some(3, 5))]) == [None] * 5


def test_limits_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        PageCache(tmp_path, 1000)
    with pytest.raises(InvalidInput):
        PageCache(tmp_path / "missing", 8 << 20)
