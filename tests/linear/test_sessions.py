"""What is said of sessions, lost updates and fractured reads: where all is well, and each way it may not be."""

from __future__ import annotations

from tests.linear.history import NEVER_NS, Kind, Op, Outcome
from tests.linear.register import ABSENT, LEAVING
from tests.linear.sessions import backwards, fractured, judged, lost_updates


def op(called: int, kind: Kind, value: str = "", revision: int = 0, **more: object) -> Op:
    said = {"client": "c", "key": "k", "server": "s1", "outcome": Outcome.OK, "returned_ns": called + 1} | more
    return Op(kind=kind, called_ns=called, value=value, revision=revision, object_id="i" if revision else "", **said)  # type: ignore[arg-type]


def read(called: int, value: str, revision: int = 0, **more: object) -> Op:
    return op(called, Kind.READ, value, revision, **more)


def swap(called: int, expected_revision: int, revision: int, **more: object) -> Op:
    value, expected = f"v{revision}", f"v{expected_revision}"
    return op(called, Kind.SWAP, value, revision, expected=expected, expected_revision=expected_revision, **more)


def test_a_history_as_it_should_be() -> None:
    history = [
        op(1, Kind.CREATE, "v1", 1),
        read(3, "v1", 1),
        swap(5, 1, 2),
        read(7, "v1", 1, server="s2"),
        read(9, "v2", 2),
        op(11, Kind.DELETE, "", 3),
        read(13, ABSENT),
        read(15, "v2", 2, server="s2"),
    ]
    assert judged(history) == []


def test_a_read_at_one_server_goes_back() -> None:
    assert "was 2, then 1" in backwards([read(1, "v2", 2), read(3, "v1", 1)])[0]


def test_an_own_write_is_not_read() -> None:
    assert "was 2, then 1" in backwards([swap(1, 1, 2), read(3, "v1", 1)])[0]


def test_what_nobody_deleted_is_gone() -> None:
    made = op(1, Kind.CREATE, "v1", 1)
    assert "nobody deleted it" in backwards([made, read(3, ABSENT)])[0]
    deleted = op(5, Kind.DELETE, "", 2, client="d")
    assert "nobody deleted it" in backwards([made, read(3, ABSENT), deleted])[0], "it was deleted later"
    unknown = op(2, Kind.DELETE, client="d", outcome=Outcome.UNKNOWN, returned_ns=NEVER_NS)
    assert backwards([made, unknown, read(3, ABSENT)]) == []
    early = op(0, Kind.DELETE, "", 2, client="d")
    assert backwards([early, read(3, LEAVING, 3), read(5, ABSENT)]) == [], "what is being deleted is written to, too"


def test_what_was_gone_is_back_as_it_was() -> None:
    deleted = op(3, Kind.DELETE, "", 2, client="d")
    history = [read(1, "v1", 1), deleted, read(5, ABSENT)]
    assert "was gone after 1, then 1" in backwards([*history, read(7, "v1", 1)])[0]
    assert backwards([*history, op(7, Kind.CREATE, "v3", 3)]) == []


def test_a_revision_is_followed_twice() -> None:
    assert "followed by 2 and by 3" in lost_updates([swap(1, 1, 2), swap(1, 1, 3, client="d")])[0]
    assert "5 was followed by 4" in lost_updates([swap(1, 5, 4)])[0]


def test_a_later_write_has_the_earlier_revision() -> None:
    assert "3 was answered before 2" in lost_updates([swap(1, 1, 3), swap(5, 0, 2, client="d")])[0]
    concurrent = [swap(1, 1, 3, returned_ns=9), swap(5, 0, 2, client="d")]
    assert lost_updates(concurrent) == []


def test_one_revision_is_told_in_two_ways() -> None:
    assert "at 1 is a and b" in fractured([read(1, "a", 1), read(1, "b", 1, server="s2")])[0]
    assert "at 1 is a and a" in fractured([read(1, "a", 1), read(1, "a", 1, generation=2)])[0]


def test_a_generation_goes_back() -> None:
    assert "generation 2 at 1, 1 at 2" in fractured([read(1, "a", 1, generation=2), read(3, "b", 2, generation=1)])[0]
