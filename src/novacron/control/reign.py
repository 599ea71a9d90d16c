"""What a leader does: the workers, on records and lines that refuse them once the term is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from novacron.clock import Clock
from novacron.control.leader import GuardedStore, Term
from novacron.control.line_listeners import HelloListener, ProgressListener, ReportListener, Unsubscribe
from novacron.control.link import Answer
from novacron.control.store.records import Records
from novacron.control.supervise import Work, keep_going


class Lines(Protocol):
    """What a leader needs of the lines to the agents; `Link` is one."""

    def is_connected(self, node_id: str) -> bool:
        """See Agents.is_connected."""
        ...

    async def call(
        self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float, term: int = 0
    ) -> Answer:
        """See Agents.call. term: the agent refuses it once it has heard of a newer one."""
        ...

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        """See Agents.on_progress."""
        ...

    def on_hello(self, listener: HelloListener) -> Unsubscribe:
        """Call `listener` when a node's line opens."""
        ...

    def on_report(self, listener: ReportListener) -> Unsubscribe:
        """Call `listener` with each heartbeat, after the hello and in order."""
        ...

    def heard_ago_s(self, node_id: str) -> float | None:
        """Seconds since the node's last frame; None: none since this server started."""
        ...

    def greet(self) -> None:
        """Tell listeners of every open line as if it opened now."""
        ...


class LedLines:
    """The lines for as long as a term holds. Implements Agents, and registers listeners like Link.

    Calls under way when it ends are left to the agents, as when a server dies: whoever leads next asks again, and joins
    them. Only a worker's own wish to stop cancels them there.
    """

    def __init__(self, lines: Lines, term: Term) -> None:
        self._lines = lines
        self._term = term
        self._stops: list[Unsubscribe] = []
        self._left: set[asyncio.Task[object]] = set()

    def is_connected(self, node_id: str) -> bool:
        return self._lines.is_connected(node_id)

    def heard_ago_s(self, node_id: str) -> float | None:
        return self._lines.heard_ago_s(node_id)

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float) -> Answer:
        """See Agents.call. :raise NotLeading: nothing was asked."""
        self._term.check()
        asking = asyncio.create_task(
            self._lines.call(node_id, args, answer, deadline_s=deadline_s, term=self._term.revision)
        )
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._left.add(asking)
            asking.add_done_callback(self._forget)
            if self._term.holds():
                asking.cancel()
                await asyncio.wait({asking})
            raise

    def _forget(self, asking: asyncio.Task[object]) -> None:
        self._left.discard(asking)
        if not asking.cancelled():
            asking.exception()  # looked at: nobody waits for it

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        self._lines.on_progress(migration_id, listener)

    def on_hello(self, listener: HelloListener) -> Unsubscribe:
        return self._kept(self._lines.on_hello(listener))

    def on_report(self, listener: ReportListener) -> Unsubscribe:
        return self._kept(self._lines.on_report(listener))

    def _kept(self, stop: Unsubscribe) -> Unsubscribe:
        self._stops.append(stop)
        return stop

    def close(self) -> None:
        """Nobody of this term hears anything any more."""
        for stop in self._stops:
            stop()
        self._stops.clear()


Makes = Callable[[Records, LedLines], Mapping[str, Work]]
"""Makes the workers of a term, by name, on its records and lines."""


async def reign(
    term: Term, records: Records, lines: Lines, clock: Clock, makes: Makes, note_failure: Callable[[str], None]
) -> None:
    """Run new workers, which know nothing but the records and what nodes say; until cancelled."""
    await records.caught_up(term.revision)  # all that the leader before wrote is known
    led = LedLines(lines, term)
    running: list[asyncio.Task[None]] = []
    try:
        works = makes(records.written_through(GuardedStore(records.store, term)), led)
        for name, work in works.items():
            running.append(asyncio.create_task(keep_going(name, work, clock, note_failure), name=name))
        lines.greet()
        await term.over()
    finally:
        led.close()
        for worker in running:
            worker.cancel()
        await asyncio.gather(*running, return_exceptions=True)
