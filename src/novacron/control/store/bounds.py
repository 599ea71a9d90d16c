"""The contract's bounds, checked alike by every store, and the range of keys that a prefix means."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from novacron.control.store.base import MAX_COMMIT_BYTES, MAX_KEY_BYTES, MAX_OPS, MAX_VALUE_BYTES, Delete, Expect, Put
from novacron.errors import InvalidInput


def bytes_of(key: str) -> bytes:
    """As stores keep and order it. :raise InvalidInput: it has no UTF-8."""
    try:
        return key.encode()
    except UnicodeEncodeError as wrong:
        raise InvalidInput.field("key", "is not valid Unicode") from wrong


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """Every key with the prefix is >= the first and < the second: no byte of UTF-8 is 0xff."""
    low = bytes_of(prefix)
    return low, low + b"\xff"


def check(ops: Sequence[Put | Delete], expect: Sequence[Expect]) -> None:
    """:raise InvalidInput: out of the contract's bounds."""
    if max(len(ops), len(expect)) > MAX_OPS:
        raise InvalidInput.field("ops", f"{max(len(ops), len(expect))} in one transaction, {MAX_OPS} allowed")
    for one in itertools.chain(ops, expect):
        size = len(bytes_of(one.key))
        if not 0 < size <= MAX_KEY_BYTES:
            raise InvalidInput.field("key", f"has {size} bytes, 1 to {MAX_KEY_BYTES} allowed")
        if isinstance(one, Put) and len(one.value) > MAX_VALUE_BYTES:
            raise InvalidInput.field("value", f"of {one.key} has {len(one.value)} bytes, {MAX_VALUE_BYTES} allowed")
    if len({op.key for op in ops}) < len(ops):
        raise InvalidInput.field("ops", "name a key twice")
    total = sum(len(op.value) for op in ops if isinstance(op, Put))
    if total > MAX_COMMIT_BYTES:
        raise InvalidInput.field("ops", f"have {total} bytes of values, {MAX_COMMIT_BYTES} allowed in one transaction")
