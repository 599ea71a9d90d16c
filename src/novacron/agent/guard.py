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
from novacron.clock import Clock
from novacron.errors import NovaCronError
from novacron.model.ha import FenceClass, is_guarded
from novacron.model.machine import ENDED, MachineSpec

LOOK_S = 1.0
"""A deadline that has come nearer is noticed so late at the most; one that is further off is not missed."""

AT_DEADLINE = "its node's heartbeats did not count in time, so it was ended: it may be started elsewhere"
LEAVING = "its node was told to leave, so it was ended: it may be started elsewhere at once"
BEFORE_JOIN = "its node was fenced, so it was ended before its node joined again: it may run elsewhere"


class Guard:
    """`watch` until cancelled. declared: the fence class of this node, as long as every guarded machine allows it."""

    def __init__(self, ledger: Ledger, driver: Driver, clock: Clock, declared: FenceClass) -> None:
        self._ledger = ledger
        self._driver = driver
        self._clock = clock
        self._declared = declared
        self._deadline_s = math.inf
        self._log = structlog.get_logger("guard")

    @property
    def fence_class(self) -> FenceClass:
        """What can be said of this node with a join: no timer ends a machine that was started without a guardian."""
        if self._declared < FenceClass.TIMER or all(map(self._driver.has_guardian, self.guarded())):
            return self._declared
        return FenceClass.AGENT

    def guarded(self) -> tuple[str, ...]:
        """Of the machines that live here, those that have a deadline."""
        found = []
        for holding in self._ledger.all():
            seen = self._driver.report(holding.vm_id)
            alive = seen is not None and seen.status not in ENDED
            if alive and holding.spec is not None and is_guarded(holding.spec.ha, self._declared):
                found.append(holding.vm_id)
        return tuple(found)

    def living(self) -> tuple[str, ...]:
        """All machines that live here, guarded or not."""
        seen = ((holding.vm_id, self._driver.report(holding.vm_id)) for holding in self._ledger.all())
        return tuple(vm_id for vm_id, report in seen if report is not None and report.status not in ENDED)

    def deadline_of(self, spec: MachineSpec) -> float | None:
        """What the timer of a machine that is started now is set to; None: it has none."""
        timed = (
            math.isfinite(self._deadline_s)
            and self._declared >= FenceClass.TIMER
            and is_guarded(spec.ha, self._declared)
        )
        return self._deadline_s if timed else None

    async def arm(self, deadline_s: float) -> None:
        """They live until then, or longer if they were given more."""
        self._deadline_s = max(self._deadline_s, deadline_s)
        await self._driver.arm(self._deadline_s)

    async def shorten(self, deadline_s: float) -> bool:
        """They live no longer than that, until they are given more; whether every timer was set so.

        What an agent before this one gave them may be less, and stands.
        """
        self._deadline_s = min(self._deadline_s, deadline_s)
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
