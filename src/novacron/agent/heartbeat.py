"""Tells the server what this node runs: every two seconds, and at once when a machine changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from novacron.agent.machines import Machines
from novacron.clock import Clock
from novacron.model.machine import MachineReport
from novacron.model.node import NodeUsage
from novacron.wire.agent import REPORT_INTERVAL_S, Report

COMPLETE_EVERY = 15
"""Every so many regular reports all machines are told, not only those that changed."""

Send = Callable[[Report], Awaitable[None]]
Networks = Callable[[], tuple[str, ...]]


class Meter(Protocol):
    """What measures the node's usage."""

    def usage(self, machines: tuple[MachineReport, ...]) -> NodeUsage: ...


class Heartbeat:
    """`run` once a line; changes that come while a report is on its way are told together in the next."""

    def __init__(self, machines: Machines, meter: Meter, clock: Clock, networks: Networks | None = None) -> None:
        """networks: tells ids of the overlay networks that the node has something of."""
        self._machines = machines
        self._meter = meter
        self._clock = clock
        self._networks = networks
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._due = False
        machines.subscribe(self._note)

    def _note(self, report: MachineReport) -> None:
        self._changed[report.vm_id] = None
        self._wake.set()

    def told(self) -> tuple[MachineReport, ...]:
        """All machines, for a Hello; what changes from here on is told by `run`."""
        self._changed.clear()
        return self._machines.reports()

    async def run(self, send: Send) -> None:
        """Report through `send` until it raises or this is cancelled."""
        self._due = False
        ticker = asyncio.create_task(self._tick(), name="heartbeat-tick")
        try:
            seq = 0
            regular = 0
            while True:
                await self._wake.wait()
                self._wake.clear()
                regular += self._due
                complete = self._due and regular % COMPLETE_EVERY == 0
                self._due = False
                seq += 1
                await send(self._report(seq, complete=complete))
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(REPORT_INTERVAL_S)
            self._due = True
            self._wake.set()

    def _report(self, seq: int, *, complete: bool) -> Report:
        everything = self._machines.reports()
        told = everything if complete else tuple(one for one in everything if one.vm_id in self._changed)
        self._changed.clear()
        usage, copies = self._meter.usage(everything), self._machines.remains.all() if complete else ()
        networks = self._networks() if complete and self._networks else None
        return Report(seq=seq, complete=complete, machines=told, usage=usage, copies=copies, networks=networks)
