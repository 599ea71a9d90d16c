"""The line to each agent: calls with deadlines and cancellation, reports coming in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from novacron.model.migration import Progress

Answer = TypeVar("Answer")
ProgressListener = Callable[[Progress], None]


class Agents(Protocol):
    """What workers know of agents; the simulator has another implementation."""

    def is_connected(self, node_id: str) -> bool:
        """Whether a line to the node is open now."""
        ...

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float) -> Answer:
        """Have the node do the verb that `args` (a struct of wire.agent.VERBS) stands for.

        Cancelling the call cancels the agent's work on it.

        :raise NodeUnreachable: no line, or it broke; the verb may or may not have been done.
        :raise DeadlineExceeded: no answer in time; likewise.
        :raise NovaCronError: the agent's own refusal or failure, rebuilt with its code.
        """
        ...

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        """Have `listener` called with each progress report of the migration; None: stop."""
        ...
