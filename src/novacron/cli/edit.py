"""Change a record by what it is now: read, change, write if nobody else wrote meanwhile, else again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from novacron.errors import PreconditionFailed

if TYPE_CHECKING:
    from novacron.client.call import Call
    from novacron.client.sync import Client

T = TypeVar("T")
TRIES = 5


def edit(nova: Client, read: Call[T], change: Callable[[T], Call[T]]) -> T:
    """The record as changed. `change` makes the write from what was read, with its revision.

    :raise PreconditionFailed: others kept changing it.
    """
    for _ in range(TRIES - 1):
        try:
            return nova.do(change(nova.do(read)))
        except PreconditionFailed:
            continue
    return nova.do(change(nova.do(read)))
