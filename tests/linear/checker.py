"""Is a history linearizable? The search of Wing and Gong with Lowe's memory of configurations, key by key. Pure.

Sources of the algorithm: J. M. Wing and C. Gong, "Testing and Verifying Concurrent Objects", 1993 (the search);
G. Lowe, "Testing for linearizability", 2017 (each set of operations done and state is visited once); A. Horn and
D. Kroening, "Faster linearizability checking via P-compositionality", 2015 (a history is linearizable if each key is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from tests.linear.history import NEVER_NS, Op

Step = Callable[[str, Op], str | None]

MAX_VISITED = 3_000_000


class Undecided(Exception):
    """The search has become too large to say."""


class Violation(msgspec.Struct, frozen=True):
    """No order explains the operations of a key. longest: the longest that was found; stuck: what then would have had
    to come next, and none of it could.
    """

    key: str
    longest: tuple[Op, ...]
    state: str
    stuck: tuple[Op, ...]

    def __str__(self) -> str:
        before = "\n  ".join(map(_line, self.longest[-12:]))
        after = "\n  ".join(map(_line, self.stuck))
        return f"{self.key}: after\n  {before}\nthe state is {self.state}, and none of these can follow:\n  {after}"


def violations(history: Iterable[Op], step: Step, initial: Callable[[str], str]) -> list[Violation]:
    """What is wrong with each key of a history. initial: a key's state before it. :raise Undecided"""
    found = (_judged(key, ops, step, initial(key)) for key, ops in by_key(history).items())
    return [one for one in found if one is not None]


def by_key(history: Iterable[Op]) -> Mapping[str, Sequence[Op]]:
    """The operations of each key, in the order in which they were called."""
    parts: dict[str, list[Op]] = {}
    for op in history:
        parts.setdefault(op.key, []).append(op)
    return {key: sorted(ops, key=lambda op: op.called_ns) for key, ops in parts.items()}


class _Events:
    """Calls and returns in order of time, as a list from which a call is taken with its return, and put back.

    Event 0 is the head. Operations of unknown outcome have no return: nothing waits for them.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        calls = [(op.called_ns, 0, place) for place, op in enumerate(ops)]
        returns = [(op.returned_ns, 1, place) for place, op in enumerate(ops) if op.returned_ns < NEVER_NS]
        self.of = [(-1, False)]  # event → place of its operation, whether it is the call
        self._return: dict[int, int] = {}
        for _, is_return, place in sorted(calls + returns):
            if is_return:
                self._return[place] = len(self.of)
            self.of.append((place, not is_return))
        count = len(self.of)
        self.next = [*range(1, count), 0]
        self._before = [count - 1, *range(count - 1)]

    def take(self, call: int) -> None:
        self._unlink(call)
        if back := self._return.get(self.of[call][0]):
            self._unlink(back)

    def put_back(self, call: int) -> None:
        if back := self._return.get(self.of[call][0]):
            self._link(back)
        self._link(call)

    def _unlink(self, event: int) -> None:
        self.next[self._before[event]], self._before[self.next[event]] = self.next[event], self._before[event]

    def _link(self, event: int) -> None:
        self.next[self._before[event]] = self._before[self.next[event]] = event


def _judged(key: str, ops: Sequence[Op], step: Step, state: str) -> Violation | None:
    events = _Events(ops)
    waiting = sum(op.returned_ns < NEVER_NS for op in ops)
    done = 0
    path: list[tuple[int, str]] = []  # call, state before it
    visited: set[tuple[int, str]] = set()
    best = _Best()
    event = events.next[0]
    while waiting:
        place, is_call = events.of[event]
        if is_call:
            after = step(state, ops[place])
            if after is None or (reached := (done | 1 << place, after)) in visited:
                event = events.next[event]
                continue
            visited.add(reached)
            if len(visited) > MAX_VISITED:
                raise Undecided(f"{key}: more than {MAX_VISITED} configurations of {len(ops)} operations")
            path.append((event, state))
            done, state = reached
            waiting -= ops[place].returned_ns < NEVER_NS
            events.take(event)
            event = events.next[0]
            continue
        best.note(path, state)
        if not path:
            return best.violation(key, ops, events)
        event, state = path.pop()
        place = events.of[event][0]
        done &= ~(1 << place)
        waiting += ops[place].returned_ns < NEVER_NS
        events.put_back(event)
        event = events.next[event]
    return None


class _Best:
    """The longest order that explains something."""

    def __init__(self) -> None:
        self._calls: list[int] = []
        self._state = ""

    def note(self, path: Sequence[tuple[int, str]], state: str) -> None:
        if len(path) > len(self._calls) or not self._state:
            self._calls = [call for call, _ in path]
            self._state = state

    def violation(self, key: str, ops: Sequence[Op], events: _Events) -> Violation:
        """With what is concurrent to the first operation that is left."""
        places = [events.of[call][0] for call in self._calls]
        left = [op for place, op in enumerate(ops) if place not in set(places)]
        first_ns = min(op.returned_ns for op in left)
        stuck = tuple(op for op in left if op.called_ns <= first_ns)
        return Violation(key, tuple(ops[place] for place in places), self._state, stuck)


def _line(op: Op) -> str:
    ended = "?" if op.returned_ns == NEVER_NS else str(op.returned_ns)
    what = f"{op.expected} -> {op.value}" if op.expected else op.value
    return f"{op.called_ns}..{ended} {op.client}@{op.server} {op.kind} {what}: {op.outcome}, revision {op.revision}"
