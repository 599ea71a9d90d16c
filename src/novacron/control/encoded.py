"""Records as the API shows them, encoded once for each revision: reads, pages and events send the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic

import msgspec

from novacron.control.store.kinds import Kind, R
from novacron.control.store.records import Records, Seen
from novacron.control.store.shelf import Stored

View = Callable[[R, int], dict[str, Any]]
"""Record and revision → the object in the shape of wire.rest."""


def nothing_else(_: Any) -> str:
    """For views that depend on the record alone."""
    return ""


class Encoded(Generic[R]):
    """The bytes of each record of a kind, kept until it changes.

    beside: what a view shows that is not in the record (the name of its node); other text, other bytes.
    """

    def __init__(
        self, records: Records, kind: Kind[R], view: View[R], beside: Callable[[R], str] = nothing_else
    ) -> None:
        self._kind = kind
        self._view = view
        self._beside = beside
        self._kept: dict[str, tuple[int, str, bytes]] = {}
        self._encode = msgspec.json.Encoder().encode
        records.subscribe(self._forget)

    def __call__(self, stored: Stored[R]) -> bytes:
        record, revision = stored.record, stored.modified
        beside = self._beside(record)
        kept = self._kept.get(record.id)
        if kept is not None and kept[0] == revision and kept[1] == beside:
            return kept[2]
        body = self._encode(self._view(record, revision))
        if kept is None or kept[0] <= revision:
            self._kept[record.id] = (revision, beside, body)
        return body

    def _forget(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is self._kind and change.now is None and change.before is not None:
                self._kept.pop(change.before.id, None)
