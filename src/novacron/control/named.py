"""Finds a record that a field of a request's body names: when there is none the field is wrong, not the path."""

from __future__ import annotations

from novacron.control.store.kinds import Kind, R
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import InvalidInput, NotFound


def named(records: Records, kind: Kind[R], ref: str, field: str) -> Stored[R]:
    """The record whose id, name or alias is `ref`. :raise InvalidInput: there is none; names the field."""
    try:
        return records.find(kind, ref)
    except NotFound as missing:
        noun = kind.object_type.value.replace("_", "-")
        raise InvalidInput.field(field, missing.message, f"novacron {noun} list shows what there is") from missing
