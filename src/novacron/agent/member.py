"""This node's membership: it heartbeats, joins, and asks for time, through whichever servers it has lines to.

Decides nothing itself: agent.tenure says what an answer means, agent.warrant what may start, agent.guard ends machines.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from novacron.agent import tenure as tenures
from novacron.agent import warrant
from novacron.agent.guard import BEFORE_JOIN, LEAVING, Guard
from novacron.agent.tenure import Tenure
from novacron.agent.warrant import Order
from novacron.clock import Clock
from novacron.errors import InvalidInput, NovaCronError, StaleGeneration, Unavailable
from novacron.model.ha import Proof
from novacron.model.membership import Membership, MemberState
from novacron.model.timing import MAX_TTL_S, STANDARD
from novacron.wire.membership import Beat, Hold, Join, Leave, Plea, Question, Standing, Terms

LEAVE_TRIES = 3

Ask = Callable[[Question, float], Awaitable[Standing]]
"""Ask one server, and wait so many seconds for its answer. :raise NovaCronError: none came."""


class Member:
    """`run` until cancelled. A node none of whose servers named terms takes no part: nothing of it is guarded."""

    def __init__(self, guard: Guard, boot_id: str, clock: Clock) -> None:
        self.tenure = Tenure(ttl_s=STANDARD.ttl_s)
        self._guard = guard
        self._boot_id = boot_id
        self._clock = clock
        self._timing = STANDARD
        self._doors: dict[str, Ask] = {}
        self._listed: tuple[str, ...] = ()
        self._seen: Membership | None = None
        self._refused = False
        self._away = False
        self._place = 0
        self._sooner_s: float | None = None  # a shorter ttl counts before it is said
        self._held_until_s: float | None = None  # a longer ttl, asked for by a person
        self._counted = asyncio.Condition()
        self._leaving: Leave | None = None
        self._ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("member")

    @property
    def is_heard(self) -> bool:
        """Whether the last that was asked got an answer."""
        return not self._away

    # -- servers -------------------------------------------------------------------------------------------

    def met(self, terms: Terms, ask: Ask) -> None:
        """A line to that server is open."""
        self._doors[terms.server_id] = ask
        self._timing = terms.timing
        if not self._listed:  # later ones come with what its heartbeats are answered, from one server at a time
            self._listed = tuple(sorted(terms.servers))
        if self.tenure.ttl_s != terms.timing.ttl_s and self._held_until_s is None:
            self.tenure = tenures.with_ttl(self.tenure, terms.timing.ttl_s, self._now_s)
            self._sooner_s = self._now_s + terms.timing.ttl_s
        self._wake.set()

    def lost(self, server_id: str, ask: Ask) -> None:
        """That line has broken; one that has taken its place stays."""
        if self._doors.get(server_id) is ask:
            del self._doors[server_id]

    # -- what may start ------------------------------------------------------------------------------------

    def check(self, vm_id: str, generation: int, epoch: int, floor: int) -> None:
        """Whether an order to start or continue a machine counts here now (rules R2, R9).

        :raise StaleGeneration: it speaks for an ownership that has passed.
        :raise Unavailable: of another epoch, or there is too little time left; another try may be obeyed.
        """
        if not self._listed:
            return
        order = Order(vm_id=vm_id, generation=generation, epoch=epoch)
        reason = warrant.refusal(order, self.tenure, floor, self._now_s, self._timing)
        if reason is not None:
            wrong = Unavailable if reason.code in warrant.PASSING else StaleGeneration
            raise wrong(f"machine {vm_id} is not started: {reason.message}", [reason])

    async def hold(self, asked: Hold) -> None:
        """Ask for so long a ttl until then, as this agent is to be away (R11); back once a heartbeat with it counted.

        Called off, it is asked for all the same. :raise InvalidInput: it is out of bounds.
        """
        if not self._timing.ttl_s <= asked.ttl_s <= MAX_TTL_S:
            bounds = f"give {self._timing.ttl_s:.0f} to {MAX_TTL_S:.0f} seconds"
            raise InvalidInput.field("for_s", "is out of bounds", bounds)
        begun_s = self._now_s
        self.tenure = tenures.with_ttl(self.tenure, asked.ttl_s, begun_s)
        self._held_until_s = begun_s + asked.ttl_s
        self._wake.set()
        async with self._counted:
            await self._counted.wait_for(lambda: self.tenure.deadline_s >= begun_s + asked.ttl_s)
        self._log.info("on hold", for_s=asked.ttl_s)

    def _let_go(self) -> None:
        """The hold is over: the usual ttl, which counts before it is said."""
        self._held_until_s = None
        self.tenure = tenures.with_ttl(self.tenure, self._timing.ttl_s, self._now_s)
        self._sooner_s = self._now_s + self._timing.ttl_s

    # -- turns ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self._guard.shorten(self._now_s + self.tenure.ttl_s)  # whatever an agent before this one gave them
        beside = [asyncio.create_task(work, name="member") for work in (self._tick(), self._guard.watch())]
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._doors:
                    await self._take_turn()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(self._timing.heartbeat_s)
            self._wake.set()

    async def _take_turn(self) -> None:
        if self._held_until_s is not None and self._now_s >= self._held_until_s:
            self._let_go()
        if self._sooner_s is not None:
            await self._guard.shorten(self._sooner_s)
            self._sooner_s = None
        if self._refused:
            await self._join()
        elif self._away:  # not only once the heartbeat was in vain, too
            await asyncio.gather(self._beat(), self._plead())
        else:
            await self._beat()

    async def _beat(self) -> None:
        self.tenure, beat = tenures.beating(self.tenure, self._now_s)
        question = Beat(id=next(self._ids), epoch=beat.epoch, beats=beat.beats, ttl_s=beat.ttl_s)
        answer = await self._ask_one(question)
        if answer is None:
            await self._unheard()
            return
        self._away = False
        self._take_list(answer)
        if answer.counted:
            await self._hold(tenures.beat_counted(self.tenure, beat))
            self._take_class(answer)
        elif tenures.joining(self.tenure, answer.member, self._listed, self._now_s) is not None:
            self._seen, self._refused = answer.member, True
            await self._join()

    def _take_class(self, answer: Standing) -> None:
        """A node that vouches for less than it said joins anew, at its next turn."""
        if answer.member is not None and self._guard.fence_class < answer.member.fence_class:
            self._log.warning(
                "this node vouches for less than before", fence_class=self._guard.fence_class.name.lower()
            )
            self.tenure, self._seen, self._refused = tenures.anew(self.tenure), answer.member, True

    def _take_list(self, answer: Standing) -> None:
        """With other servers than those it joined for a node joins anew, at its next turn."""
        listed = tuple(sorted(answer.servers))
        if listed and listed != self._listed:
            self._listed, self._seen, self._refused = listed, answer.member, True

    async def _join(self) -> None:
        join = tenures.joining(self.tenure, self._seen, self._listed, self._now_s)
        if join is None:
            self._refused = False
            return
        if join.end_first and not await self._guard.end_all(BEFORE_JOIN):
            return  # something does not die; asked again at the next turn
        if not await self._guard.shorten(join.latest_s):
            self._log.warning("a machine's timer could not be set, so this node does not join yet")
            return
        await self._guard.ready(self._timing)
        self.tenure = tenures.sending(self.tenure, join)
        question = Join(
            id=next(self._ids),
            state=join.seen.state if join.seen else None,
            epoch=join.seen.epoch if join.seen else 0,
            boot_id=self._boot_id,
            fence_class=self._guard.fence_class,
            ttl_s=join.ttl_s,
            servers=join.servers,
        )
        answer = await self._ask_one(question)
        if answer is None:
            await self._unheard()
            return
        self._away, self._seen = False, answer.member
        if answer.counted and answer.member is not None:
            self._refused = False
            await self._hold(tenures.joined(self.tenure, join, answer.member))
            self._log.info("joined", epoch=self.tenure.epoch, fence_class=self._guard.fence_class.name.lower())
        self._take_list(answer)  # last: it may ask for another join

    async def _hold(self, tenure: Tenure) -> None:
        self.tenure = tenure
        await self._guard.arm(tenure.deadline_s)
        async with self._counted:
            self._counted.notify_all()

    async def _unheard(self) -> None:
        """The store may be away, or this server: another one the next time."""
        self._place += 1
        self._away = True
        await self._plead()

    async def _plead(self) -> None:
        """Ask all servers for time."""
        asked_s, epoch, agreed = self._now_s, self.tenure.epoch, set[str]()
        if epoch == 0 or asked_s >= self.tenure.deadline_s:
            return

        async def plead(server_id: str) -> None:
            door = self._doors.get(server_id)
            answer = await self._answer(door, Plea(id=next(self._ids))) if door else None
            if answer is not None and answer.counted:
                agreed.add(server_id)
                await self._hold(tenures.given_time(self.tenure, epoch, asked_s, agreed, self._now_s, self._timing))

        await asyncio.gather(*(plead(server_id) for server_id in sorted(self.tenure.servers)))

    # -- leaving -------------------------------------------------------------------------------------------

    def begin_leaving(self) -> None:
        """From here on this node starts nothing. `run` must have ended: nothing joins any more."""
        epoch = self.tenure.epoch
        self.tenure = tenures.leaving(self.tenure, self._now_s)
        if epoch:
            self._leaving = Leave(id=0, state=MemberState.UP, epoch=epoch)

    async def leave(self) -> bool:
        """End every machine, see it, and say so: they may run elsewhere at once. Whether that was written.

        Else everything is as if this node had fallen silent. What was being started must have come to its end.
        """
        if not await self._guard.clear(LEAVING):
            self._log.error("a machine does not die, so this node cannot say that nothing of it runs")
            return False
        for _ in range(LEAVE_TRIES):
            if self._leaving is None:
                return False  # it takes no part, so nobody waits for its word
            answer = await self._ask_one(msgspec.structs.replace(self._leaving, id=next(self._ids)))
            if answer is None:
                self._place += 1
            elif answer.counted or answer.member is None or answer.member.state is MemberState.FENCED:
                return answer.member is not None and answer.member.proof is Proof.AGENT  # written, now or unheard
            else:  # it was barred, or a join of it was written later than its answer was waited for
                self._leaving = Leave(id=0, state=answer.member.state, epoch=answer.member.epoch)
        return False

    async def _ask_one(self, question: Question) -> Standing | None:
        """The answer of one server that has a line; None: none came in time."""
        doors = [self._doors[server_id] for server_id in sorted(self._doors)]
        return await self._answer(doors[self._place % len(doors)], question) if doors else None

    async def _answer(self, door: Ask, question: Question) -> Standing | None:
        try:
            return await door(question, self._timing.request_s)
        except NovaCronError as error:
            if not self._away:
                self._log.warning("a server does not answer", question=type(question).__name__, why=error.message)
            return None

    @property
    def _now_s(self) -> float:
        return self._clock.monotonic_s()
