"""An undo stack: add how to take back each thing as it is done; unless it succeeded, all is taken back in reverse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

Step = Callable[[], Awaitable[None]]


class Undo:
    """`async with Undo() as undo:` then `undo.add(name, step)` after each thing done, and `undo.success()` at the end.

    Leaving the block without success (an error, a cancellation) runs every step, newest first. A step that fails is
    logged and does not keep the others from running; the error that left the block goes on.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Step]] = []

    def add(self, name: str, step: Step) -> None:
        self._steps.append((name, step))

    def success(self) -> None:
        """Everything stands: forget how to undo it."""
        self._steps.clear()

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        while self._steps:
            name, step = self._steps.pop()
            try:
                await step()
            except Exception:  # noqa: BLE001  (an undo step may fail in any way; the rest must still be undone)
                structlog.get_logger("undo").exception("could not undo", step=name)
