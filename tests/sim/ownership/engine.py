"""Virtual time, processes that crash and stand still, and a network that loses, delays, doubles and holds back."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

Act = Callable[[], None]

LOST, DOUBLED, LATE, HELD = 0.02, 0.02, 0.03, 0.5
"""Parts of messages: lost; doubled; delayed by up to LATE_S; of those that meet a cut, brought once it heals."""
LATE_S = 4.0


class Loop:
    """Everything that happens, in order of true time."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self._due: list[tuple[float, int, Act]] = []
        self._count = 0

    def at(self, when_s: float, act: Act) -> None:
        self._count += 1
        heapq.heappush(self._due, (max(when_s, self.now_s), self._count, act))

    def after(self, seconds: float, act: Act) -> None:
        self.at(self.now_s + seconds, act)

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._due)
            act()


class Clock:
    """A monotonic clock that starts anywhere and runs a little too fast or too slow."""

    def __init__(self, loop: Loop, rate_bound: float) -> None:
        self._loop = loop
        self.rate = 1 + loop.rng.uniform(-rate_bound, rate_bound)
        self._start_s = loop.rng.uniform(0, 1e4)

    def now_s(self) -> float:
        return self._start_s + self._loop.now_s * self.rate

    def true_s(self, own_s: float) -> float:
        """The true time at which this clock shows `own_s`."""
        return (own_s - self._start_s) / self.rate


class Process:
    """Something with a life: what was to happen in an earlier one never does, and what meets a pause waits."""

    def __init__(self, loop: Loop, clock: Clock) -> None:
        self.loop = loop
        self.clock = clock
        self.life = 0
        self.alive = False
        self.paused_until_s = 0.0

    def begin(self) -> None:
        self.alive = True
        self.life += 1

    def end(self) -> None:
        self.alive = False
        self.life += 1
        self.paused_until_s = 0.0

    @property
    def paused(self) -> bool:
        return self.loop.now_s < self.paused_until_s

    def pause(self, seconds: float) -> None:
        self.paused_until_s = max(self.paused_until_s, self.loop.now_s + seconds)

    def mine(self, act: Act) -> Act:
        """`act` as done by this process in its present life."""
        life = self.life

        def run() -> None:
            if self.life != life or not self.alive:
                return
            if self.paused:
                self.loop.at(self.paused_until_s + self.loop.rng.uniform(0, 0.02), run)
                return
            act()

        return run

    def after(self, own_s: float, act: Act) -> None:
        self.loop.after(own_s / self.clock.rate, self.mine(act))


class Net:
    """Between named places. A cut has a direction and an end."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._cuts: dict[tuple[str, str], float] = {}

    def cut(self, a: str, b: str, until_s: float) -> None:
        self._cuts[a, b] = max(self._cuts.get((a, b), 0.0), until_s)

    def is_cut(self, a: str, b: str) -> bool:
        return self._cuts.get((a, b), 0.0) > self._loop.now_s

    def send(self, a: str, b: str, act: Act) -> None:
        rng = self._loop.rng
        if rng.random() < LOST:
            return
        for _ in range(2 if rng.random() < DOUBLED else 1):
            late = rng.random() < LATE
            self._loop.after(rng.uniform(0.2, LATE_S) if late else rng.uniform(0.001, 0.03), self._arriving(a, b, act))

    def _arriving(self, a: str, b: str, act: Act) -> Act:
        def arrive() -> None:
            if not self.is_cut(a, b):
                act()
            elif self._loop.rng.random() < HELD:  # a connection that outlives the cut brings it then
                self._loop.at(self._cuts[a, b] + self._loop.rng.uniform(0.001, 0.5), arrive)

        return arrive


def ask(
    net: Net,
    asker: tuple[str, Process],
    name: str,
    wait_s: float,
    answer: Callable[[Any], None],
    do: Callable[[Callable[[Any], None]], Act],
) -> None:
    """A question over the network. answer: called once, with None when nothing came in time. do: what happens at
    `name` once it is there, given the way back.
    """
    own, process = asker
    waiting = [True]

    def done(value: Any) -> None:
        if waiting[0]:
            waiting[0] = False
            answer(value)

    came: list[Any] = []
    take = process.mine(lambda: done(came[-1]))

    def reply(value: Any) -> None:
        def bring() -> None:
            came.append(value)
            take()

        net.send(name, own, bring)

    process.after(wait_s, lambda: done(None))
    net.send(own, name, do(reply))
