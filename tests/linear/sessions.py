"""What holds of a history beyond linearizability: what each client may count on at one server. Pure.

Each function answers with a sentence for every operation that breaks its promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from tests.linear.history import Kind, Op, Outcome
from tests.linear.register import ABSENT, LEAVING


def backwards(history: Sequence[Op]) -> list[str]:
    """Monotone reads and reads of own writes: a client that asks one server, over however many connections and restarts
    of it, never gets an older state of a record than it was told there before, nor than it wrote there.
    """
    sessions: dict[tuple[str, str, str], list[Op]] = {}
    for op in history:
        if op.outcome is not Outcome.UNKNOWN:
            sessions.setdefault((op.client, op.server, op.key), []).append(op)
    deletes = [op for op in history if op.kind is Kind.DELETE and op.outcome in (Outcome.OK, Outcome.UNKNOWN)]
    return [words for ops in sessions.values() for words in _of_session(ops, deletes)]


def _of_session(ops: Sequence[Op], deletes: Sequence[Op]) -> Iterator[str]:
    known: Op | None = None  # what was last told of the record
    gone = False  # and whether since then that there is none
    for op in ops:
        if op.outcome is Outcome.MISSING or op.value == ABSENT:
            if known is not None and not gone and not _may_be_gone(known, op, deletes):
                yield f"{op.client} at {op.server}: {op.key} is gone though nobody deleted it after {known.revision}"
            gone = gone or known is not None
        elif op.outcome is Outcome.OK and op.revision:
            if known is not None and (op.revision < known.revision or (gone and op.revision == known.revision)):
                was = "gone after " if gone else ""
                yield f"{op.client} at {op.server}: {op.key} was {was}{known.revision}, then {op.revision}"
            known, gone = op, False


def _may_be_gone(known: Op, seen: Op, deletes: Sequence[Op]) -> bool:
    return known.value == LEAVING or any(
        one.key == known.key
        and one.called_ns < seen.returned_ns
        and (one.returned_ns > known.called_ns or one.revision >= known.revision)
        for one in deletes
    )


def lost_updates(history: Sequence[Op]) -> list[str]:
    """A revision is followed by one compare-and-swap at most; of two writes the later has the later revision."""
    return [*_followed_twice(history), *_out_of_order(history)]


def _followed_twice(history: Sequence[Op]) -> Iterator[str]:
    followed: dict[tuple[str, int], Op] = {}
    for op in history:
        if op.wrote and op.expected_revision:
            if op.revision <= op.expected_revision:
                yield f"{op.key}: {op.expected_revision} was followed by {op.revision}"
            other = followed.setdefault((op.key, op.expected_revision), op)
            if other is not op:
                yield f"{op.key}: {op.expected_revision} was followed by {other.revision} and by {op.revision}"


def _out_of_order(history: Sequence[Op]) -> Iterator[str]:
    """In order of revisions no write was called after the next one had been answered."""
    writes: dict[str, list[Op]] = {}
    for op in history:
        if op.wrote and op.kind is not Kind.DELETE:  # deleting what is being deleted writes nothing
            writes.setdefault(op.key, []).append(op)
    for ops in writes.values():
        latest: Op | None = None  # of those with a lower revision, the one that was called last
        for op in sorted(ops, key=lambda one: one.revision):
            if latest is not None and op.returned_ns < latest.called_ns:
                yield f"{op.key}: {op.revision} was answered before {latest.revision} was asked for"
            latest = op if latest is None or op.called_ns > latest.called_ns else latest


def fractured(history: Iterable[Op]) -> list[str]:
    """One revision of a record is the same to everybody, and a later one has no earlier generation."""
    found: dict[tuple[str, int], Op] = {}
    wrong = []
    for op in history:
        if op.outcome is Outcome.OK and op.revision and op.object_id and op.kind is not Kind.DELETE:
            other = found.setdefault((op.object_id, op.revision), op)
            if (other.value, other.generation) != (op.value, op.generation):
                wrong.append(f"{op.key} at {op.revision} is {other.value} and {op.value}")
    for (one, before), (other, after) in pairwise(sorted(found.items(), key=lambda item: item[0])):
        if one[0] == other[0] and before.generation > after.generation:
            wrong.append(f"{after.key}: generation {before.generation} at {one[1]}, {after.generation} at {other[1]}")
    return wrong


def judged(history: Sequence[Op]) -> list[str]:
    """All of the above."""
    return [*backwards(history), *lost_updates(history), *fractured(history)]
