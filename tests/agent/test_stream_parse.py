"""The parser of migration streams: finds the pages of a real QEMU's, and whatever comes, loses and invents no byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.agent.stream.batch import MAX_BODY_BYTES, PAGE_BYTES, PAGES, ZEROS, Batch, Haste, body_of, rebuild
from novacron.agent.stream.parse import MAX_HELD_BYTES, Splitter
from tests.agent import stream_bytes as made
from tests.system.rom_machine import needs_qemu
from tests.system.rom_pair import pair, recorded


def again(batch: Batch) -> bytes:
    """A batch as the other side puts it together, with none of its pages held."""
    body = body_of(batch, [False] * len(batch.pages))
    assert len(body) <= MAX_BODY_BYTES
    piece, pages = rebuild(body, [None] * len(batch.pages))
    assert [bytes(page) for page in pages] == [bytes(page) for page in batch.contents()]
    return piece


def cut(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size
    yield data[at:]


def batches(splitter: Splitter, pieces: Iterable[bytes]) -> list[Batch]:
    found = [batch for piece in pieces if (batch := splitter.feed(piece)) is not None]
    return [*found, splitter.release()] if splitter.holds else found


def count(found: Iterable[Batch], kind: int) -> int:
    return sum(number for batch in found for k, number, _ in batch.ops if k == kind)


@needs_qemu
@pytest.mark.system
@pytest.mark.anyio
async def test_the_pages_of_a_real_guest_are_found() -> None:
    async with pair(pages=4, wss=1024) as (source, _, directory):
        await source.ticking(300)
        await source.do("migrate-set-capabilities", capabilities=[{"capability": "return-path", "state": False}])
        stream = await recorded(source, directory)
    splitter = Splitter()
    found = batches(splitter, cut(stream, [100_000] * (len(stream) // 100_000)))
    assert b"".join(map(again, found)) == stream
    assert count(found, PAGES) * PAGE_BYTES > 0.9 * len(stream) - (1 << 20)
    assert count(found, PAGES) >= 1024
    assert count(found, ZEROS) > 32 * 256 // 2
    assert found[0].haste is Haste.NONE
    assert found[-1].haste is Haste.STANDS
    assert not splitter.understands  # behind the end nothing is looked for


def test_runs_become_single_ops() -> None:
    pages = made.contents(random.Random(3), 200, zeros=0)
    (batch,) = batches(Splitter(), [made.HEAD + made.setup() + made.part(made.records(pages))])
    assert count([batch], PAGES) == 199  # the one that names its block stays among the bytes
    assert len(batch.ops) <= 4


def test_post_copy_is_known_by_its_package() -> None:
    pages = made.contents(random.Random(4), 20, zeros=0)
    stream = made.postcopy(pages, pages)
    half = stream.index(b"\x08\0\x08\0\4")
    splitter = Splitter()
    before = batches(splitter, [stream[:half]])
    behind = batches(splitter, [stream[half:]])
    assert [batch.haste for batch in before] == [Haste.NONE]
    assert {batch.haste for batch in behind} == {Haste.AWAITED}
    assert count(behind, PAGES) == 19


@pytest.mark.parametrize("flags", [0x40, 0x80, 0x100, 0x200, 0x800])
def test_what_it_does_not_know_passes_and_ends_the_search(flags: int) -> None:
    pages = made.records(made.contents(random.Random(5), 10))
    strange = struct.pack(">Q", flags | 0x20) + b"\1\2\3" * 2000
    stream = made.HEAD + made.setup() + b"\x02\0\0\0\2" + pages + strange + pages
    splitter = Splitter()
    assert b"".join(map(again, batches(splitter, cut(stream, [7000] * 10)))) == stream
    assert not splitter.understands


def test_no_more_is_held_back_than_a_page_with_its_name() -> None:
    strange = b"\x08\0\x08\x40\0" + bytes(100_000)  # a package whose size has 16 KiB
    splitter = Splitter()
    found = batches(splitter, [made.HEAD + made.setup(), *cut(strange, [1000] * 200)])
    assert b"".join(map(again, found)) == made.HEAD + made.setup() + strange
    splitter = Splitter()
    splitter.feed(made.HEAD + made.setup())
    for piece in cut(strange, [1000] * 10):
        splitter.feed(piece)
    assert not splitter.holds or len(splitter.release().raw) <= MAX_HELD_BYTES


def test_a_page_that_is_not_whole_can_be_given_away() -> None:
    pages = made.contents(random.Random(6), 5, zeros=0)
    stream = made.HEAD + made.setup() + made.part(made.records(pages))
    splitter = Splitter()
    at = stream.index(pages[2]) + 1000
    first = splitter.feed(stream[:at])
    rest = splitter.release()
    last = splitter.feed(stream[at:])
    assert first is not None
    assert last is not None
    assert again(first) + again(rest) + again(last) == stream
    assert count([last], PAGES) == 2, "it goes on behind the page that was cut"


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6),
    st.lists(st.one_of(st.integers(1, 40), st.integers(1, 9000)), max_size=60),
    st.sets(st.integers(0, 60)),
)
def test_no_byte_is_lost_or_invented(
    seed: int, flips: list[tuple[int, int]], end: int, sizes: list[int], releases: set[int]
) -> None:
    """Streams bent, cut short, in pieces of any size, with what is held back asked for at any time."""
    dice = random.Random(seed)
    stream = bytearray(made.stream(made.contents(dice, 24), seed))
    for at, value in flips:
        stream[at % len(stream)] = value
    bent = bytes(stream[: 1 + end % len(stream)])
    splitter = Splitter()
    given_away = []
    for number, piece in enumerate(cut(bent, sizes)):
        batch = splitter.feed(piece)
        given_away.append(again(batch) if batch else b"")
        if number in releases and splitter.holds:
            given_away.append(again(splitter.release()))
    if splitter.holds:
        left = splitter.release()
        assert len(left.raw) <= MAX_HELD_BYTES
        given_away.append(again(left))
    assert b"".join(given_away) == bent


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=20), st.booleans())
def test_garbage_passes_as_it_is(pieces: list[bytes], begins_well: bool) -> None:
    if begins_well:
        pieces = [made.HEAD + made.setup() + b"\x02\0\0\0\2", *pieces]
    assert b"".join(map(again, batches(Splitter(), pieces))) == b"".join(pieces)
