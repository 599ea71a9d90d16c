"""The outside observer itself: what must never be is called wrong, what may be is not."""

from __future__ import annotations

import pytest

from tests.system.observer import (
    Copies,
    Reading,
    Run,
    apart,
    fences_have_reasons,
    kept,
    never_two,
    nothing_secret,
    one_life,
    only_grows,
    untouched,
)
from tests.system.passage import Frames, frame_bytes

ALONE = [Copies(0.0, {"a": 1}), Copies(1.0, {}), Copies(2.0, {"b": 2})]


def reading(number: int, revision: int, state: str = "up", reason: str = "", server: str = "s1") -> Reading:
    return Reading(server, "node a", number, revision, state, reason)


def test_two_processes_at_a_time_are_wrong_one_after_the_other_are_not() -> None:
    assert not never_two(ALONE)
    assert never_two([*ALONE, Copies(3.0, {"a": 1, "b": 2})])


@pytest.mark.parametrize(
    ("runs", "is_wrong"),
    [
        ([Run("a", 1, 50), Run("b", 51, 80)], False),  # it moved
        ([Run("a", 1, 50), Run("b", 53, 80)], False),  # a tick was lost on the way
        ([Run("a", 1, 50), Run("b", 1, 80)], False),  # it was booted
        ([Run("a", 1, 50), Run("b", 51, 80), Run("a", 51, 60)], True),  # both went on from the same moment
        ([Run("a", 1, 50), Run("b", 1, 20), Run("a", 51, 60)], True),  # the old one still runs
        ([Run("a", 1, 50), Run("b", 40, 80)], True),  # from a past that has gone on
        ([Run("a", 1, 50, bad=1)], True),
    ],
)
def test_ticks_are_one_life(runs: list[Run], is_wrong: bool) -> None:
    assert bool(one_life(runs)) == is_wrong


def test_what_a_copy_that_was_left_behind_ticks_is_set_apart_and_counted() -> None:
    thawed = [Run("a", 1, 50), Run("b", 1, 20), Run("a", 51, 52), Run("b", 21, 80)]
    lives, behind = apart(thawed)
    assert (lives, behind) == ([Run("a", 1, 50), Run("b", 1, 80)], 2)
    assert not one_life(lives)


def test_a_second_life_is_no_copy_that_was_left_behind() -> None:
    forked = [Run("a", 1, 50), Run("b", 1, 20), Run("a", 40, 60), Run("b", 21, 80)]
    assert one_life(apart(forked)[0])
    moved = [Run("a", 1, 50), Run("b", 51, 80), Run("a", 81, 90)]
    assert apart(moved) == (moved, 0)


def test_numbers_only_grow_for_each_reader() -> None:
    assert not only_grows([reading(1, 5), reading(2, 6), reading(1, 5, server="s2")])
    assert only_grows([reading(2, 6), reading(1, 7)])
    assert only_grows([reading(2, 6), reading(2, 5)])


def test_a_fence_without_a_reason_is_wrong() -> None:
    assert not fences_have_reasons([reading(1, 1), reading(2, 2, "fenced", "no heartbeat for 2 s")])
    assert fences_have_reasons([reading(2, 2, "fencing")])


def test_an_acknowledged_write_that_is_gone_is_wrong() -> None:
    assert not kept(3, 3)
    assert not kept(3, 4)  # one that was written though nobody heard so
    assert kept(3, 2)


def test_whom_nobody_touched_must_not_have_changed() -> None:
    assert not untouched([Copies(0.0, {"a": 1})], [Run("a", 1, 50)])
    assert untouched(ALONE, [Run("a", 1, 50)])
    assert untouched([Copies(0.0, {"a": 1})], [Run("a", 1, 50), Run("a", 1, 9)])


def test_a_secret_that_is_told_is_wrong() -> None:
    assert not nothing_secret(["--secret-file f"], ["hunter2"])
    assert nothing_secret(["", "--secret hunter2"], ["hunter2"])


def test_a_passage_repeats_whole_frames_after_the_greeting_only() -> None:
    head = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
    frames = [bytes([0x82, 3]) + word for word in (b"one", b"two")]
    ping, large = bytes([0x89, 0]), bytes([0x82, 126, 1, 0]) + b"x" * 256
    sent = head + frames[0] + ping + frames[1] + large
    cutter = Frames()
    pieces = [piece for at in range(len(sent)) for piece in cutter.split(sent[at : at + 1])]
    assert pieces == [(head, False), (frames[0], False), (ping, False), (frames[1], True), (large, True)]
    assert frame_bytes(bytes([0x82, 0x80 | 5])) == 2 + 4 + 5


def test_a_passage_leaves_what_is_no_websocket_as_it_is() -> None:
    assert Frames().split(b"GET /f HTTP/1.1\r\n\r\nbody") == [(b"GET /f HTTP/1.1\r\n\r\nbody", False)]
