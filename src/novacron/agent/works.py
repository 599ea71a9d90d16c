"""The calls under way at this node: each is done once, however often it is asked for and whatever becomes of lines."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Hashable

import msgspec

from novacron.errors import Busy, DeadlineExceeded, NotLeading
from novacron.wire.agent import Call, Reply

MAX_WORKS = 1024

Perform = Callable[[Call], Awaitable[Reply]]
Respond = Callable[[Reply], Awaitable[None]]
Asker = tuple[Hashable, int]  # a line and the id of a call on it


@dataclasses.dataclass(eq=False)
class Work:
    """One verb being done, and who waits for it (nobody, when their lines broke)."""

    key: tuple[str, bytes]
    waiting: dict[Asker, Respond]
    task: asyncio.Task[None] | None = None
    timer: asyncio.Timeout | None = None


class Works:
    """A call repeated while its first asking is still being done joins it; afterwards the verb finds its work done.

    One for all lines: a new leader's call joins that of the leader before it, which from then on is heard no more.
    """

    def __init__(self, perform: Perform) -> None:
        self._perform = perform
        self._term = 0  # the newest that a leader has spoken of
        self._led: dict[Asker, int] = {}  # those who asked as leaders, and of which term
        self._by_key: dict[tuple[str, bytes], Work] = {}
        self._by_asker: dict[Asker, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also of what is called off and still undoes itself

    async def take(self, line: Hashable, call: Call, respond: Respond) -> None:
        """Have `call` done; `respond` gets its reply. Returns at once."""
        asker = (line, call.id)
        if call.term and not self._may_lead(call.term):
            late = NotLeading(f"the leader of revision {call.term} is followed by one of revision {self._term}")
            await respond(Reply(id=call.id, error=late.as_data()))
            return
        key = (call.verb, bytes(call.args))
        work = self._by_key.get(key)
        if work is not None:
            work.waiting[asker] = respond
            self._note(asker, work, call)
            self._allow(work, call)
        elif len(self._tasks) >= MAX_WORKS:
            busy = Busy(f"this node has {MAX_WORKS} calls under way")
            await respond(Reply(id=call.id, error=busy.as_data()))
        else:
            work = Work(key, {asker: respond})
            self._by_key[key] = work
            self._note(asker, work, call)
            work.task = asyncio.create_task(self._do(work, call), name=call.verb)
            self._tasks.add(work.task)
            work.task.add_done_callback(self._tasks.discard)

    def cancel(self, line: Hashable, call_id: int) -> None:
        """This asker no longer waits; work for which nobody waits is cancelled, and not joined by a later call."""
        work = self._leave((line, call_id))
        if work is not None and not work.waiting and work.task is not None:
            work.task.cancel()
            self._forget(work)

    def abandon(self, line: Hashable) -> None:
        """A line broke: its works go on to their ends, for nobody knows that they should not."""
        for asker in [asker for asker in self._by_asker if asker[0] is line]:
            self._leave(asker)

    async def finish(self, within_s: float) -> bool:
        """Wait for works under way, but not longer; whether none is left."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=within_s)
        return not self._tasks

    def _may_lead(self, term: int) -> bool:
        """A newer leader's word goes: nobody waits in the name of an older one, and what is being done goes on."""
        if term > self._term:
            self._term = term
            for asker in [asker for asker, older in self._led.items() if older < term]:
                self._leave(asker)
        return term == self._term

    def _note(self, asker: Asker, work: Work, call: Call) -> None:
        self._by_asker[asker] = work
        if call.term:
            self._led[asker] = call.term

    def _leave(self, asker: Asker) -> Work | None:
        self._led.pop(asker, None)
        work = self._by_asker.pop(asker, None)
        if work is not None:
            work.waiting.pop(asker, None)
        return work

    def _forget(self, work: Work) -> None:
        """From now on a call like it begins anew."""
        if self._by_key.get(work.key) is work:
            del self._by_key[work.key]

    def _allow(self, work: Work, call: Call) -> None:
        """Who joins may wait longer than who came first."""
        until = asyncio.get_running_loop().time() + call.deadline_ms / 1e3
        if work.timer is not None and not work.timer.expired() and until > (work.timer.when() or 0.0):
            work.timer.reschedule(until)

    async def _do(self, work: Work, call: Call) -> None:
        try:
            async with asyncio.timeout(call.deadline_ms / 1e3) as work.timer:
                reply = await self._perform(call)
        except TimeoutError:
            late = DeadlineExceeded(f"{call.verb} was not done within its {call.deadline_ms} ms")
            reply = Reply(id=call.id, error=late.as_data())
        finally:
            self._forget(work)
            waiting = dict(work.waiting)
            for asker in waiting:
                self._by_asker.pop(asker, None)
                self._led.pop(asker, None)
        for (_, call_id), respond in waiting.items():
            await respond(reply if call_id == reply.id else msgspec.structs.replace(reply, id=call_id))
