"""Pieces of a stream are put together as they were or refused; packing is bounded and as strong as the link allows."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.agent.stream.batch import body_of, rebuild
from novacron.agent.stream.level import LEVELS, Pace, level_for, worth_a_new_window
from novacron.agent.stream.messages import Data, answer, held_of, keys_of, offer, read, read_data
from novacron.agent.stream.pack import Press, Unpacker
from novacron.agent.stream.parse import Splitter
from novacron.errors import Malformed
from tests.agent import stream_bytes as made


def test_held_pages_are_not_sent_and_stand_in_their_places() -> None:
    dice = random.Random(1)
    batch = Splitter().feed(made.HEAD + made.setup() + made.part(made.records(made.contents(dice, 60, zeros=0))))
    assert batch is not None
    held = [dice.random() < 0.5 for _ in batch.pages]
    mine = [bytes(page) if there else None for page, there in zip(batch.contents(), held, strict=True)]
    body = body_of(batch, held)
    assert len(body) < len(batch.raw) - sum(held) * 4000
    assert rebuild(body, mine)[0] == batch.raw
    with pytest.raises(Malformed):
        rebuild(body, [None] * len(held))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_bent_body_is_refused_or_bounded(seed: int, flips: list[tuple[int, int]]) -> None:
    dice = random.Random(seed)
    batch = Splitter().feed(made.HEAD + made.setup() + made.part(made.records(made.contents(dice, 8))))
    assert batch is not None
    body = bytearray(body_of(batch, [False] * len(batch.pages)))
    for at, value in flips:
        body[at % min(len(body), 120)] = value
    try:
        piece, _ = rebuild(bytes(body), [None] * 1000)
    except Malformed:
        return
    assert len(piece) < 3 << 20


@given(st.binary(max_size=60))
def test_words_that_are_none_are_refused(raw: bytes) -> None:
    for reader in (read, read_data, keys_of, lambda rest: held_of(rest, 77)):
        try:
            reader(raw)
        except Malformed:
            continue


def test_questions_and_answers() -> None:
    keys = [os.urandom(12) for _ in range(77)]
    asked = read(offer(5, keys))
    assert (asked.number, keys_of(asked.rest)) == (5, keys)
    held = [random.Random(1).random() < 0.5 for _ in keys]
    assert held_of(read(answer(5, held)).rest, 77) == held
    data = Data(7, 100, True, os.urandom(32), b"packed")
    assert read_data(data.pack()) == data


def test_pieces_unpack_one_by_one_across_a_change_of_level() -> None:
    press, unpacker = Press(), Unpacker()
    pieces = [random.Random(n).randbytes(600_000) + bytes(400_000) for n in range(20)] * 3
    levels = set()
    for number, piece in enumerate(pieces):
        link = None if number < 25 else 1e6
        fresh, packed = press.pack(piece, link)
        assert fresh == (number == 0 or press.level not in levels)
        assert unpacker.unpack(packed, len(piece), fresh=fresh) == piece
        levels.add(press.level)
        if number == 22:
            assert len(packed) < 1000, "the window still holds what came 20 pieces ago"
    assert len(levels) == 2


def test_a_piece_that_unpacks_to_more_than_it_says_is_cut_off() -> None:
    _, packed = Press().pack(bytes(64 << 20), None)
    with pytest.raises(Malformed):
        Unpacker().unpack(packed, 1000, fresh=True)
    with pytest.raises(Malformed):
        Unpacker().unpack(packed, 1 << 30, fresh=True)
    with pytest.raises(Malformed):
        Unpacker().unpack(os.urandom(5000), 1 << 20, fresh=True)


def test_the_level_follows_the_link() -> None:
    chosen = [level_for(Pace(3, 0, 0, 0.0, link)) for link in (1e6, 5e6, 12.5e6, 40e6, 1e9)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] == LEVELS[-1]
    assert chosen[-1] == LEVELS[0]
    assert level_for(Pace(5, 0, 0, 0.0, None)) == 5
    slow_processor = Pace(3, 100 << 20, 33 << 20, 4.0, 12.5e6)
    assert level_for(slow_processor) < level_for(Pace(3, 0, 0, 0.0, 12.5e6)) < level_for(Pace(3, 0, 0, 0.0, 1e6))
    assert worth_a_new_window(5, 3)
    assert worth_a_new_window(3, 7)
    assert not worth_a_new_window(3, 5)
    assert not worth_a_new_window(3, 3)
