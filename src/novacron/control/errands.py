"""Works that go on side by side, at most one for each key, and are all called off together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

Mark = TypeVar("Mark")


class Errand(NamedTuple, Generic[Mark]):
    """mark: what it was begun for."""

    mark: Mark
    task: asyncio.Task[None]


class Errands(Generic[Mark]):
    """Open within `async with`, which ends with all works called off; it can be opened again.

    again: told each key whose work ended by itself or was called off alone, once that is no more under way.
    """

    def __init__(self, name: str, again: Callable[[str], None] | None = None) -> None:
        self._name = name
        self._again = again
        self._is_open = False
        self._under_way: dict[str, Errand[Mark]] = {}

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        tasks = [errand.task for errand in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_open(self) -> bool:
        """Whether a work can be begun."""
        return self._is_open

    def __iter__(self) -> Iterator[str]:
        return iter(self._under_way)

    def under_way(self, key: str) -> Errand[Mark] | None:
        """What is under way for this key."""
        return self._under_way.get(key)

    def begin(self, key: str, mark: Mark, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a work, unless one is under way for its key or these are not open."""
        if not self._is_open or key in self._under_way:
            return
        task = asyncio.create_task(work(), name=f"{self._name}-{key}")
        self._under_way[key] = Errand(mark, task)
        task.add_done_callback(lambda _: self._ended(key))

    def call_off(self, key: str) -> None:
        """Have the work for this key end, if one is under way."""
        if (errand := self._under_way.get(key)) is not None:
            errand.task.cancel()

    def _ended(self, key: str) -> None:
        del self._under_way[key]
        if self._is_open and self._again is not None:
            self._again(key)
