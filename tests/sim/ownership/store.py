"""The store: transactions at the moment they arrive, answers that may never come, an outage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.ownership.engine import Loop, Net, Process

Key = tuple[str, str]
State = dict[Key, Any]
Transaction = Callable[[State], Any]
Answer = Callable[[Any], None]

UNKNOWN = None
"""What a caller gets who waited in vain: the transaction may have happened, may yet happen, or never."""


class Store:
    """audit: called after each transaction with what it changed, as (key, before, now)."""

    def __init__(self, loop: Loop, net: Net) -> None:
        self._loop = loop
        self._net = net
        self.state: State = {}
        self.revision = 0
        self.down_until_s = 0.0
        self.audit: Callable[[Key, Any, Any], None] = lambda key, before, now: None

    def apply(self, transaction: Transaction) -> Any:
        """At once, as one step."""
        before = dict(self.state)
        answer = transaction(self.state)
        changed = [key for key, value in self.state.items() if before.get(key) is not value]
        self.revision += bool(changed)
        for key in changed:
            self.audit(key, before.get(key), self.state[key])
        return answer

    def ask(self, process: Process, at: str, within_s: float, transaction: Transaction, answer: Answer) -> None:
        """From a server at place `at`: `answer` is called once, with UNKNOWN after `within_s`."""
        self._carry(process, at, within_s, lambda: self.apply(transaction), answer)

    def read(self, process: Process, at: str, within_s: float, answer: Answer) -> None:
        """Likewise: the revision, and everything as of it."""
        self._carry(process, at, within_s, lambda: (self.revision, dict(self.state)), answer)

    def _carry(self, process: Process, at: str, within_s: float, act: Callable[[], Any], answer: Answer) -> None:
        waiting = [True]

        def done(value: Any) -> None:
            if waiting[0]:
                waiting[0] = False
                answer(value)

        process.after(within_s, lambda: done(UNKNOWN))
        came: list[Any] = []
        take = process.mine(lambda: done(came[0]))

        def arrive() -> None:
            if self._loop.now_s < self.down_until_s:
                return
            value = act()

            def bring() -> None:
                came.append(value)
                take()

            self._net.send("store", at, bring)

        self._net.send(at, "store", arrive)
