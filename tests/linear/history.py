"""What clients did and were answered: the history of a run, from which everything is judged afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import msgspec

NEVER_NS = 1 << 62
"""When an operation of unknown outcome ends: it may take effect at any time after it was called, or not at all."""


class Kind(StrEnum):
    READ = "read"
    CREATE = "create"
    SWAP = "swap"  # a write under If-Match
    WRITE = "write"  # whatever is there
    DELETE = "delete"


class Outcome(StrEnum):
    OK = "ok"
    REFUSED = "refused"  # nothing was done: the record is not as expected
    MISSING = "missing"  # nothing was done: there is no record
    UNKNOWN = "unknown"


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on one key.

    value: what was read or is to be written; for a read also register.ABSENT and LEAVING.
    expected: the value that was read together with the revision named by If-Match, empty without one.
    server: who was asked. consistent: of a read: asked for the newest; another is answered from that server's cache.
    object_id, revision, generation: of the record that was answered. expected_revision: what If-Match named.
    """

    client: str
    key: str
    kind: Kind
    called_ns: int
    returned_ns: int = NEVER_NS
    outcome: Outcome = Outcome.UNKNOWN
    value: str = ""
    expected: str = ""
    server: str = ""
    consistent: bool = True
    object_id: str = ""
    revision: int = 0
    generation: int = 0
    expected_revision: int = 0

    @property
    def wrote(self) -> bool:
        """Whether it is known to have taken effect."""
        return self.kind is not Kind.READ and self.outcome is Outcome.OK


class Asking:
    """An operation under way: `done` says how it ended, `nothing` that it certainly had no effect and tells nothing."""

    def __init__(self, op: Op) -> None:
        self.op: Op | None = op

    def done(self, outcome: Outcome, **found: object) -> None:
        assert self.op is not None
        self.op = msgspec.structs.replace(self.op, outcome=outcome, returned_ns=time.monotonic_ns(), **found)

    def nothing(self) -> None:
        self.op = None


class Recorder:
    """Takes down what clients of this process do, by one clock."""

    def __init__(self) -> None:
        self._ops: list[Op] = []

    @contextmanager
    def asking(self, client: str, key: str, kind: Kind, **said: object) -> Iterator[Asking]:
        """One operation, until it is answered; without a word from inside its outcome is unknown. A read whose outcome
        is unknown tells nothing and is left out.
        """
        asked = Op(client=client, key=key, kind=kind, called_ns=time.monotonic_ns())
        one = Asking(msgspec.structs.replace(asked, **said))
        try:
            yield one
        finally:
            if one.op is not None and (one.op.kind is not Kind.READ or one.op.outcome is not Outcome.UNKNOWN):
                self._ops.append(one.op)

    @property
    def history(self) -> tuple[Op, ...]:
        """In the order in which the operations were called."""
        return tuple(sorted(self._ops, key=lambda op: op.called_ns))
