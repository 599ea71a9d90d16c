"""Who in the server hears what nodes say on their lines."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from novacron.errors import NovaCronError
from novacron.model.migration import Progress
from novacron.wire.agent import Hello, MigrationProgress, Report
from novacron.wire.membership import Question, Standing, Terms

ProgressListener = Callable[[Progress], None]
HelloListener = Callable[[Hello], Awaitable[None] | None]
ReportListener = Callable[[str, Report], Awaitable[None] | None]
Answerer = Callable[[str, Question], Awaitable[Standing]]
LostListener = Callable[[str], Awaitable[None] | None]
Unsubscribe = Callable[[], None]


class Picture:
    """What a node has said on its line, for who begins to listen later."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._machines = {report.vm_id: report for report in hello.machines}

    def take(self, report: Report) -> None:
        if report.complete:
            self._machines.clear()
            networks = self._hello.networks if report.networks is None else report.networks
            self._hello = msgspec.structs.replace(self._hello, copies=report.copies, networks=networks)
        self._machines.update((one.vm_id, one) for one in report.machines)

    def hello(self) -> Hello:
        """The node's hello, as it would say it now."""
        return msgspec.structs.replace(self._hello, machines=tuple(self._machines.values()))


class LineListeners:
    """Who wants to hear of nodes coming, reporting and going. A listener that raises is logged, the others are told."""

    def __init__(self) -> None:
        self._hello: list[HelloListener] = []
        self._report: list[ReportListener] = []
        self._lost: list[LostListener] = []
        self._progress: dict[str, ProgressListener] = {}
        self._answerer: Answerer | None = None
        self._terms: Callable[[], Terms] | None = None
        self._log = structlog.get_logger("link")

    def on_hello(self, listener: HelloListener) -> Unsubscribe:
        """Call `listener(Hello)` when a node's line opens; returns how to stop it.

        Per node, hello, reports and lost come in order.
        """
        self._hello.append(listener)
        return lambda: self._hello.remove(listener)

    def on_report(self, listener: ReportListener) -> Unsubscribe:
        """Call `listener(node_id, Report)` with each heartbeat."""
        self._report.append(listener)
        return lambda: self._report.remove(listener)

    def on_lost(self, listener: LostListener) -> Unsubscribe:
        """Call `listener(node_id)` when a node's line has broken and no newer one has replaced it."""
        self._lost.append(listener)
        return lambda: self._lost.remove(listener)

    def on_question(self, terms: Callable[[], Terms] | None, answerer: Answerer | None) -> None:
        """Tell nodes the terms, from the next Welcome on; `answerer(node_id, question)` answers what they ask.

        None: nothing of that; nodes take no part.
        """
        self._terms, self._answerer = terms, answerer

    def terms(self) -> Terms | None:
        """What a node is told of memberships when its line opens."""
        return self._terms() if self._terms is not None else None

    async def answer(self, node_id: str, question: Question) -> Standing | None:
        """What a node is told; None: nothing, for it is not known whether something was written."""
        if self._answerer is None:
            return None
        try:
            return await self._answerer(node_id, question)
        except NovaCronError as error:
            self._log.warning("a node's question stays without an answer", node_id=node_id, why=error.message)
        except Exception:  # noqa: BLE001  (one listener's trouble is not the line's)
            self._log.exception("a node's question broke", node_id=node_id)
        return None

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        """See Agents.on_progress."""
        if listener is None:
            self._progress.pop(migration_id, None)
        else:
            self._progress[migration_id] = listener

    async def tell_hello(self, hello: Hello) -> None:
        for listener in tuple(self._hello):
            await self._tell("hello", listener, hello)

    async def tell_report(self, node_id: str, report: Report) -> None:
        for listener in tuple(self._report):
            await self._tell("report", listener, node_id, report)

    async def tell_lost(self, node_id: str) -> None:
        for listener in tuple(self._lost):
            await self._tell("lost", listener, node_id)

    def tell_progress(self, frame: MigrationProgress) -> None:
        listener = self._progress.get(frame.migration_id)
        if listener is None:
            return
        try:
            listener(frame.progress)
        except Exception:  # noqa: BLE001  (one listener's trouble is not the line's)
            self._log.exception("a progress listener broke", migration_id=frame.migration_id)

    async def _tell(self, what: str, listener: Callable[..., Awaitable[None] | None], *args: Any) -> None:
        try:
            answer = listener(*args)
            if inspect.isawaitable(answer):
                await answer
        except Exception:  # noqa: BLE001  (one listener's trouble is not the line's)
            self._log.exception("a listener broke", what=what)
