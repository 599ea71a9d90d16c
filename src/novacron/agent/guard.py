"""Ends what is guarded when this node's time is over (rule R3), or before it joins again (rule R6).

A machine is guarded when it may be restarted elsewhere on the word that it ended here (model.ha.is_guarded). Where this
node declares timers, each has a guardian besides: the kernel ends it, also when this agent stands still or is gone.
"""

from __future__ import annotations

import asyncio
import math

import structlog

from novacron.agent import self_fence
from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Ledger
from novacron.agent.watchdog import Watchdog
from novacron.clock import Clock
from novacron.errors import NovaCronError
from novacron.model.ha import FenceClass, Protection, is_guarded
from novacron.model.machine import ENDED, MachineSpec
from novacron.model.timing import Timing

LOOK_S = 1.0
"""A deadline that has come nearer is noticed so late at the most; one that is further off is not missed."""

AT_DEADLINE = "its node's heartbeats did not count in time, so it was ended: it may be started elsewhere"
LEAVING = "its node was told to leave, so it was ended: it may be started elsewhere at once"
BEFORE_JOIN = "its node was fenced, so it was ended before its node joined again: it may run elsewhere"


class Guard:
    """`watch` until cancelled. declared: the fence class of this node, as long as every guarded machine allows it; with
    a watchdog that is armed it is WATCHDOG.
    """

    def __init__(
        self, ledger: Ledger, driver: Driver, clock: Clock, declared: FenceClass, watchdog: Watchdog | None = None
    ) -> None:
        self._ledger = ledger
        self._driver = driver
        self._clock = clock
        self._without = declared
        self._watchdog = watchdog
        self._deadline_s = math.inf
        self._log = structlog.get_logger("guard")

    @property
    def _declared(self) -> FenceClass:
        armed = self._watchdog is not None and self._watchdog.armed
        return FenceClass.WATCHDOG if armed else self._without

    @property
    def _guarding(self) -> FenceClass:
        """By which class machines get deadlines: once a watchdog was armed its epoch may still say so."""
        armed = self._watchdog is not None and self._watchdog.was_armed
        return FenceClass.WATCHDOG if armed else self._without

    @property
    def fence_class(self) -> FenceClass:
        """What can be said of this node with a join."""
        living = self._protections()
        guardians = {vm_id for vm_id in living if self._driver.has_guardian(vm_id)}
        watched = {vm_id for vm_id in living if self._driver.is_watched(vm_id)}
        return self_fence.vouched(self._declared, living, guardians, watched)

    def guarded(self) -> tuple[str, ...]:
        """Of the machines that live here, those that have a deadline."""
        return tuple(
            vm_id
            for vm_id, protection in self._protections().items()
            if is_guarded(protection, self._guarding) or self._driver.has_guardian(vm_id)
        )

    def _protections(self) -> dict[str, Protection]:
        """What each machine that lives here was started with."""
        held = (self._ledger.get(vm_id) for vm_id in self.living())
        specs = (one.spec for one in held if one is not None and one.spec is not None)
        return {spec.vm_id: spec.ha for spec in specs}

    def living(self) -> tuple[str, ...]:
        """All machines that live here, guarded or not."""
        seen = ((holding.vm_id, self._driver.report(holding.vm_id)) for holding in self._ledger.all())
        return tuple(vm_id for vm_id, report in seen if report is not None and report.status not in ENDED)

    def deadline_of(self, spec: MachineSpec) -> float | None:
        """What the timer of a machine that is started now is set to; None: it has none."""
        timed = (
            math.isfinite(self._deadline_s)
            and self._guarding >= FenceClass.TIMER
            and is_guarded(spec.ha, self._guarding)
        )
        return self._deadline_s if timed else None

    @property
    def watchdog(self) -> str:
        """What there is to say of it; empty: none is set."""
        return self._watchdog.said if self._watchdog is not None else ""

    async def ready(self, timing: Timing) -> None:
        """Before a join says what this node vouches for: have the watchdog armed, if there is one that is fit."""
        if self._watchdog is not None:
            last_s = min(self._deadline_s, self._clock.monotonic_s() + timing.ttl_s)
            await self._watchdog.ready(int(timing.watchdog_s), last_s)

    async def close(self) -> None:
        """This agent ends, machines run on: the watchdog is stopped as soon as none of them is guarded."""
        if self._watchdog is not None:
            await self._watchdog.end()

    async def arm(self, deadline_s: float) -> None:
        """They live until then, or longer if they were given more."""
        self._deadline_s = max(self._deadline_s, deadline_s)
        if self._watchdog is not None:
            await self._watchdog.arm(self._deadline_s)
        await self._driver.arm(self._deadline_s)

    async def shorten(self, deadline_s: float) -> bool:
        """They live no longer than that, until they are given more; whether every timer was set so.

        What an agent before this one gave them may be less, and stands.
        """
        self._deadline_s = min(self._deadline_s, deadline_s)
        if self._watchdog is not None:
            await self._watchdog.arm(self._deadline_s, at_most=True)
        return await self._driver.arm(self._deadline_s, at_most=True)

    async def end_all(self, reason: str) -> bool:
        """Kill every one; whether none is left alive."""
        await asyncio.gather(*(self._end(vm_id, reason) for vm_id in self.guarded()))
        return not self.guarded()

    async def clear(self, reason: str) -> bool:
        """Kill whatever lives here, guarded or not; whether nothing is left alive."""
        await asyncio.gather(*(self._end(vm_id, reason) for vm_id in self.living()))
        return not self.living()

    async def _end(self, vm_id: str, reason: str) -> None:
        self._log.error("a machine is ended", vm_id=vm_id, why=reason)
        try:
            await self._driver.kill(vm_id, reason)
        except NovaCronError as error:
            self._log.error("a machine does not die", vm_id=vm_id, why=error.message)

    async def watch(self) -> None:
        """End them at their deadline."""
        while True:
            now_s = self._clock.monotonic_s()
            if self_fence.due(dict.fromkeys(self.guarded(), self._deadline_s), now_s):
                await self.end_all(AT_DEADLINE)
            left_s = self._deadline_s - now_s
            await self._clock.sleep(min(LOOK_S, left_s) if left_s > 0 else LOOK_S)
