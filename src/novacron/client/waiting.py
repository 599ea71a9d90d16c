"""Waiting for a record to become what is wanted: listen first, then read, so that no change slips between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from novacron.client.call import Call
from novacron.client.flow import Flow, Means, perform
from novacron.client.goals import Goal
from novacron.client.listening import Listener
from novacron.client.problem import not_ours
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, NotFound, Reason
from novacron.model.event import ChangeKind, Event, ObjectType
from novacron.wire.stream import Subscribe


class Watched(Protocol):
    """What every record that can be waited for has."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def revision(self) -> int: ...


W = TypeVar("W", bound=Watched)


class Wait:
    """How to wait: until when (`deadline_s` seconds from now), and what flows are handed."""

    def __init__(self, means: Means, clock: Clock, deadline_s: float) -> None:
        self._means = means
        self._clock = clock
        self._allowed_s = deadline_s
        self._until_s = clock.monotonic_s() + deadline_s

    def until(
        self, kind: ObjectType, read: Callable[[str], Call[W]], ref: str, goal: Goal[W], tell: Callable[[W], None]
    ) -> Flow[W]:
        """The record once it meets the goal; `tell` is told of each change.

        :raise DeadlineExceeded: it did not in time; what was asked for goes on.
        :raise NotFound: there is none (any more).
        :raise NovaCronError: what the goal says when it cannot be reached any more.
        """
        item = yield from perform(read(ref), self._means)
        tell(item)
        if goal.is_met(item):
            return item
        listener = Listener(Subscribe(object_types=(kind,), ids=(item.id,)), self._means, self._clock)
        while True:
            heard = yield from listener.next(self._until_s)
            if heard is None:
                raise self._late(ref, item, goal)
            if isinstance(heard, Event):
                fresh = _object_of(heard, read(item.id).answer)
            else:
                fresh = yield from perform(read(item.id), self._means)
            if fresh.revision < item.revision:
                continue
            item = fresh
            tell(item)
            if goal.is_met(item):
                return item

    def until_gone(
        self, kind: ObjectType, read: Callable[[str], Call[W]], ref: str, goal: Goal[W], tell: Callable[[W], None]
    ) -> Flow[None]:
        """Nothing, once there is no such record. `goal` only says when it will never be; raises as `until`."""
        try:
            yield from self.until(kind, read, ref, goal, tell)
        except NotFound:
            return

    def _late(self, ref: str, item: W, goal: Goal[W]) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{ref} is not {goal.text} after {self._allowed_s:g} s; it is {item.state}",
            [
                Reason(
                    "wait.deadline",
                    "what was asked for goes on; only the waiting has ended",
                    subject=ref,
                    remedy="look at it again, or wait longer (--timeout)",
                )
            ],
        )


def _object_of(event: Event, kind: type[W]) -> W:
    if event.type.endswith(f".{ChangeKind.DELETED.value}"):
        raise NotFound(f"{event.object_type.value} {event.object_id} was deleted meanwhile")
    try:
        return msgspec.convert(event.object, kind)
    except msgspec.ValidationError as wrong:
        raise not_ours(f"an event cannot be read: {wrong}") from wrong
