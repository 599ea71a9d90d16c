"""A host as hardware and kernel: power, freezes, the copies that run on it, their timers, its watchdog, its disks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from novacron.agent import self_fence
from novacron.agent.ledger import Holding
from novacron.model.ha import FenceClass
from novacron.model.timing import Timing
from tests.sim.ownership.engine import Clock, Loop, Process

TIMER_LATENCY_S = 0.005
"""A timer that was due while the host stood still fires so late after it goes on."""
BMC_OBEYS = 0.6


@dataclasses.dataclass(eq=False)
class Copy:
    """A process of a hypervisor. whole: the state it was waiting for has come. stuck: it cannot die now (D state)."""

    vm_id: str
    generation: int
    runs: bool
    guarded: bool
    armed_s: float
    migration_id: str = ""
    whole: bool = False
    stuck: bool = False
    doomed: bool = False


class Host:
    """began: called when a copy begins to run or may have gone on; ended: when the power has gone."""

    def __init__(self, loop: Loop, name: str, fence_class: FenceClass, timing: Timing) -> None:
        self.loop, self.name, self.fence_class, self.timing = loop, name, fence_class, timing
        self.clock = Clock(loop, timing.rate_bound)
        self.guardian = Process(loop, self.clock)
        self.agent = Process(loop, self.clock)
        self.copies: dict[str, Copy] = {}
        self.ledger: dict[str, Holding] = {}  # on disk
        self.boots = 0
        self.on = False
        self.frozen_until_s = 0.0
        self.began: Callable[[str], None] = lambda vm_id: None
        self.booted: Callable[[], None] = lambda: None
        self._starved_s: float | None = None
        self._alarm_s = float("inf")
        self._asked_s = 0.0

    # -- power and freezes ---------------------------------------------------------------------------------------

    def boot(self) -> None:
        if self.on:
            return
        self.on = True
        self.boots += 1
        self.clock = Clock(self.loop, self.timing.rate_bound)
        self.guardian.clock = self.agent.clock = self.clock
        self.guardian.begin()
        self.booted()

    def power_off(self, boot_after_s: float) -> None:
        if self.on:
            self.on = False
            self.copies.clear()
            self.guardian.end()
            self.agent.end()
            self.frozen_until_s = 0.0
            self._starved_s, self._alarm_s = None, float("inf")
            self.loop.after(boot_after_s, self.boot)

    def cut(self) -> None:
        """Its BMC was told to cut the power, and has answered: it does so later, or never."""
        boots = self.boots
        if self.loop.rng.random() < BMC_OBEYS:
            seconds = self.loop.rng.uniform(8, 20)
            obey = functools.partial(self._cut, boots, seconds)
            self.loop.after(self.loop.rng.uniform(0.5, 12.0), obey)

    def _cut(self, boots: int, seconds: float) -> None:
        if boots == self.boots:
            self.power_off(seconds)

    @property
    def frozen(self) -> bool:
        return self.loop.now_s < self.frozen_until_s

    def freeze(self, seconds: float) -> None:
        """Nothing on it runs, its clock goes on."""
        if not self.on:
            return
        self.frozen_until_s = max(self.frozen_until_s, self.loop.now_s + seconds)
        self.guardian.pause(seconds)
        self.agent.pause(seconds)
        self.review()
        self.loop.at(self.frozen_until_s, self._thaw)

    def _thaw(self) -> None:
        if self.on and not self.frozen:
            self.review()
            for vm_id in self.running():
                self.began(vm_id)

    def stop_guardian(self, seconds: float) -> None:
        self.guardian.pause(seconds)
        self.review()
        self.loop.at(self.guardian.paused_until_s, self.review)

    # -- copies --------------------------------------------------------------------------------------------------

    def running(self) -> list[str]:
        """Those whose guests run this moment."""
        return [] if self.frozen else [copy.vm_id for copy in self.copies.values() if copy.runs]

    def run(self, copy: Copy) -> None:
        """Begin or go on."""
        self.copies[copy.vm_id] = copy
        copy.runs = True
        self._alarm()
        self.began(copy.vm_id)

    def kill(self, vm_id: str) -> bool:
        """SIGKILL; whether it is dead now."""
        copy = self.copies.get(vm_id)
        if copy is None:
            return True
        if copy.stuck:
            copy.doomed = True
            return False
        del self.copies[vm_id]
        self.review()
        return True

    def stick(self, vm_id: str, seconds: float) -> None:
        """The copy cannot die for so long."""
        copy = self.copies.get(vm_id)
        if copy is None or copy.stuck:
            return
        copy.stuck = True

        def free() -> None:
            copy.stuck = False
            if copy.doomed and self.copies.get(vm_id) is copy:
                self.kill(vm_id)

        self.loop.after(seconds, free)

    # -- timers and watchdog -------------------------------------------------------------------------------------

    def arm(self, deadline_s: float) -> None:
        """The guardian sets the timers of all guarded copies; while it stands still they stay as they are."""

        self._asked_s = deadline_s

        def do() -> None:
            for copy in self.copies.values():
                if copy.guarded:
                    copy.armed_s = max(copy.armed_s, self._asked_s)
            self._alarm()

        self.guardian.mine(do)()

    def shorten(self, deadline_s: float) -> bool:
        """Likewise, to an earlier time; whether it was done."""
        if self.guardian.paused:
            return False
        self._asked_s = min(self._asked_s, deadline_s)
        for copy in self.copies.values():
            if copy.guarded:
                copy.armed_s = min(copy.armed_s, deadline_s)
        self._alarm()
        return True

    def _armed(self) -> dict[str, float]:
        return {one.vm_id: one.armed_s for one in self.copies.values() if one.guarded and one.runs}

    def _alarm(self, *, fired: bool = False) -> None:
        """Have the earliest timer fire; fired: those that are due have."""
        now_s = self.clock.now_s()
        armed = {vm_id: armed_s for vm_id, armed_s in self._armed().items() if not fired or armed_s > now_s}
        if not armed or self.fence_class < FenceClass.TIMER:
            return
        due_s = max(self.clock.true_s(min(armed.values())), self.loop.now_s)
        if due_s < self._alarm_s:
            self._alarm_s = due_s
            boots = self.boots
            self.loop.at(due_s + 1e-6, lambda: self._fire(boots, due_s))

    def _fire(self, boots: int, due_s: float) -> None:
        if not self.on or boots != self.boots or self._alarm_s != due_s:
            return
        self._alarm_s = float("inf")
        if self.frozen:
            at_s = self.frozen_until_s + self.loop.rng.uniform(0, TIMER_LATENCY_S)
            self._alarm_s = at_s
            self.loop.at(at_s, lambda: self._fire(boots, at_s))
            return
        for vm_id in self_fence.due(self._armed(), self.clock.now_s()):
            self.kill(vm_id)
        self.review()
        self._alarm(fired=True)

    def review(self) -> None:
        """Whether the watchdog is fed from here on."""
        fed = not self.frozen and not self.guardian.paused and self_fence.may_feed(self._armed(), self.clock.now_s())
        if fed or not self.on:
            self._starved_s = None
        elif self._starved_s is None:
            since_s = self._starved_s = self.loop.now_s
            self.loop.after(self.timing.watchdog_s, lambda: self._bite(since_s))

    def _bite(self, since_s: float) -> None:
        if self.on and self._starved_s == since_s and self.fence_class >= FenceClass.WATCHDOG:
            self.power_off(self.loop.rng.uniform(8, 20))
