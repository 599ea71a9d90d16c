"""The checker itself: histories known to be right and wrong, corrupted ones, and small ones against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linear import checker
from tests.linear.checker import Undecided, by_key, violations
from tests.linear.history import NEVER_NS, Kind, Op, Outcome
from tests.linear.register import ABSENT, LEAVING, step


def op(called: int, returned: int, kind: Kind, value: str = "", **more: object) -> Op:
    """An answered operation, of unknown outcome when it returns never."""
    outcome = Outcome.UNKNOWN if returned == NEVER_NS else Outcome.OK
    made = Op(client="c", key="k", kind=kind, called_ns=called, returned_ns=returned, outcome=outcome, value=value)
    return msgspec.structs.replace(made, **more)


def read(called: int, returned: int, value: str) -> Op:
    return op(called, returned, Kind.READ, value)


def write(called: int, returned: int, value: str) -> Op:
    return op(called, returned, Kind.WRITE, value)


def swap(called: int, returned: int, expected: str, value: str, **more: object) -> Op:
    return op(called, returned, Kind.SWAP, value, expected=expected, **more)


def is_right(history: Sequence[Op], initial: str = "0") -> bool:
    return violations(history, step, lambda _: initial) == []


REFUSED, MISSING = {"outcome": Outcome.REFUSED}, {"outcome": Outcome.MISSING}

RIGHT = {
    "nothing": [],
    "one after the other": [write(1, 2, "a"), read(3, 4, "a"), swap(5, 6, "a", "b"), read(7, 8, "b")],
    "a read during a write sees it": [write(1, 9, "a"), read(2, 3, "a")],
    "or not yet": [write(1, 9, "a"), read(2, 3, "0")],
    "of two swaps one wins": [swap(1, 9, "0", "a"), swap(1, 9, "0", "b", **REFUSED), read(10, 11, "a")],
    "a swap is refused before the first writes": [
        swap(1, 9, "a", "b"),
        swap(2, 8, "b", "c", **REFUSED),
        write(3, 7, "a"),
    ],
    "an unknown write long after": [write(1, NEVER_NS, "a"), read(5, 6, "0"), read(50, 60, "a")],
    "an unknown write never": [write(1, NEVER_NS, "a"), read(5, 6, "0"), read(50, 60, "0")],
    "an unknown swap explains a refusal": [swap(1, NEVER_NS, "0", "a"), swap(5, 6, "0", "b", **REFUSED)],
    "deleted, then leaving, then gone": [
        op(1, 2, Kind.DELETE),
        read(3, 4, LEAVING),
        read(5, 6, ABSENT),
        op(7, 8, Kind.CREATE, "n"),
    ],
    "its name is free when nobody looked": [op(1, 2, Kind.DELETE), op(3, 4, Kind.CREATE, "n"), read(5, 6, "n")],
    "a write misses what is gone": [op(1, 2, Kind.DELETE), swap(3, 4, "0", "a", **MISSING)],
    "what is leaving may be written to": [op(1, 2, Kind.DELETE), write(3, 4, "a"), read(5, 6, LEAVING)],
}

WRONG = {
    "a stale read": [write(1, 2, "a"), read(3, 4, "0")],
    "a read from the future": [read(1, 2, "a"), write(3, 4, "a")],
    "a lost write": [write(1, 2, "a"), write(3, 4, "b"), read(5, 6, "a")],
    "there and back": [write(1, 9, "a"), read(2, 3, "a"), read(4, 5, "0")],
    "two swaps of one value": [swap(1, 9, "0", "a"), swap(1, 9, "0", "b")],
    "a swap of an older value": [swap(1, 2, "0", "a"), swap(3, 4, "0", "b")],
    "a swap refused without reason": [swap(1, 2, "0", "a", **REFUSED)],
    "a swap refused from an older state": [write(1, 2, "a"), swap(3, 4, "a", "b", **REFUSED)],
    "an unknown write before it was called": [read(1, 2, "a"), write(3, NEVER_NS, "a")],
    "an unknown write twice": [
        write(1, NEVER_NS, "a"),
        read(2, 3, "a"),
        write(4, 5, "b"),
        read(6, 7, "b"),
        read(8, 9, "a"),
    ],
    "back from the dead": [op(1, 2, Kind.DELETE), read(3, 4, "0")],
    "leaving again once it was gone": [op(1, 2, Kind.DELETE), read(3, 4, ABSENT), read(5, 6, LEAVING)],
    "made over what is there": [op(1, 2, Kind.CREATE, "a")],
    "its name was free": [op(1, 2, Kind.DELETE), read(3, 4, ABSENT), op(5, 6, Kind.CREATE, "a", **REFUSED)],
    "missing though it is there": [swap(1, 2, "0", "a", **MISSING)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_called_right(name: str) -> None:
    assert is_right(RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_called_wrong(name: str) -> None:
    assert not is_right(WRONG[name])


def test_each_key_is_judged_by_itself_and_named() -> None:
    wrong = [msgspec.structs.replace(one, key="bad") for one in WRONG["a stale read"]]
    (found,) = violations([*RIGHT["one after the other"], *wrong], step, lambda _: "0")
    assert found.key == "bad"
    assert [one.value for one in found.longest] == ["a"]
    assert [one.value for one in found.stuck] == ["0"]
    assert "bad: after" in str(found)


def test_a_search_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_VISITED", 50)
    unknown = [write(1, NEVER_NS, str(number)) for number in range(8)]
    with pytest.raises(Undecided):
        is_right([*unknown, read(2, 3, "never written")])


# -- long histories ------------------------------------------------------------------------------------------


def truth(rng: random.Random, count: int, clients: int = 5) -> list[Op]:
    """A history of a register as it should be: each operation takes effect at a moment between call and answer."""
    state, moment = "0", 0
    made: list[Op] = []
    free = [0] * clients
    for number in range(count):
        client = rng.randrange(clients)
        moment = max(moment, free[client]) + rng.randrange(1, 10)
        called = max(free[client], moment - rng.randrange(20))
        returned = moment + rng.randrange(1, 20)
        kind = rng.choice((Kind.READ, Kind.READ, Kind.WRITE, Kind.SWAP))
        one = op(called, returned, kind, state if kind is Kind.READ else f"v{number}", client=f"c{client}")
        if kind is Kind.SWAP:
            expected = rng.choice((state, "v0"))
            outcome = Outcome.OK if expected == state else Outcome.REFUSED
            one = msgspec.structs.replace(one, expected=expected, outcome=outcome)
        if kind is not Kind.READ and one.outcome is Outcome.OK:
            state = one.value
            if rng.random() < 0.05:
                one = msgspec.structs.replace(one, outcome=Outcome.UNKNOWN, returned_ns=NEVER_NS)
        free[client] = returned + 1
        made.append(one)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_of_a_true_register_are_right(seed: int) -> None:
    assert is_right(truth(random.Random(seed), 400))


def stale(history: Sequence[Op]) -> list[int]:
    """Reads that began after a write had been answered that began after the one they would then see was answered."""
    return [
        place for place, one in enumerate(history) if one.kind is Kind.READ and _overwritten(history, one) is not None
    ]


def _overwritten(history: Sequence[Op], one: Op) -> str | None:
    writes = [other for other in history if other.wrote and other.returned_ns < one.called_ns]
    for older, newer in itertools.product(writes, writes):
        if older.returned_ns < newer.called_ns:
            return older.value
    return None


@pytest.mark.parametrize("seed", range(20))
def test_one_read_of_something_overwritten_is_found_in_a_long_history(seed: int) -> None:
    rng = random.Random(seed)
    history = truth(rng, 300)
    place = rng.choice(stale(history))
    value = _overwritten(history, history[place])
    history[place] = msgspec.structs.replace(history[place], value=value)
    assert not is_right(history)


@pytest.mark.parametrize("seed", range(20))
def test_one_write_that_was_lost_is_found_in_a_long_history(seed: int) -> None:
    """It was acknowledged, and somebody who asked afterwards got what was there before."""
    history = truth(random.Random(seed), 300)
    end = max(one.called_ns for one in history) + 1000
    latest = max((one for one in history if one.wrote), key=lambda one: one.called_ns)
    lost = write(end, end + 1, "lost")
    assert is_right([*history, lost, read(end + 2, end + 3, "lost")])
    assert not is_right([*history, lost, read(end + 2, end + 3, latest.value)])


# -- brute force ---------------------------------------------------------------------------------------------


def by_brute_force(ops: Sequence[Op], initial: str) -> bool:
    """Whether some order of all answered and some of the others keeps to time and to the register."""
    known = [one for one in ops if one.returned_ns < NEVER_NS]
    unknown = [one for one in ops if one.returned_ns == NEVER_NS]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            if any(_explains(order, initial) for order in itertools.permutations([*known, *chosen])):
                return True
    return False


def _explains(order: Sequence[Op], initial: str) -> bool:
    state: str | None = initial
    latest_call = 0
    for one in order:
        if one.returned_ns < latest_call or state is None:
            return False
        latest_call = max(latest_call, one.called_ns)
        state = step(state, one)
    return state is not None


@st.composite
def operations(draw: st.DrawFn) -> Op:
    values = st.sampled_from(["0", "a", "b"])
    kind = draw(st.sampled_from(Kind))
    called = draw(st.integers(0, 8)) * 2  # calls at even, returns at odd moments: none at once
    is_unknown = kind is not Kind.READ and draw(st.booleans())
    returned = NEVER_NS if is_unknown else called + 1 + 2 * draw(st.integers(0, 4))
    value = draw(st.one_of(values, st.sampled_from([ABSENT, LEAVING])) if kind is Kind.READ else values)
    expected = draw(values) if kind is Kind.SWAP or (kind is Kind.DELETE and draw(st.booleans())) else ""
    made = op(called, returned, kind, value, expected=expected)
    if is_unknown or kind is Kind.READ:
        return made
    allowed = [Outcome.OK, Outcome.REFUSED] + ([Outcome.MISSING] if kind is not Kind.CREATE else [])
    return msgspec.structs.replace(made, outcome=draw(st.sampled_from(allowed)))


@settings(max_examples=600)
@given(st.lists(operations(), max_size=6), st.sampled_from(["0", ABSENT]))
def test_of_every_small_history_it_says_what_brute_force_says(ops: list[Op], initial: str) -> None:
    assert is_right(ops, initial) == by_brute_force(ops, initial)


def test_parts_by_key_keep_the_order_of_calls() -> None:
    assert [one.called_ns for one in by_key([read(5, 6, "0"), read(1, 9, "0")])["k"]] == [1, 5]
