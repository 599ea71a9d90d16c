"""The one door to QEMU against a scripted monitor: deadlines, refusals, events, loss."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from novacron.agent.drivers.qemu.qmp import Event, Monitor
from novacron.clock import SystemClock
from novacron.errors import DeadlineExceeded, MonitorFailed

pytestmark = pytest.mark.anyio
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}


class Qemu:
    """The other end: answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.setblocking(False)
        self._theirs = theirs
        self.asked: list[dict[str, Any]] = []
        self.silent: set[str] = set()
        self.refused: dict[str, str] = {}
        self.answers: dict[str, Any] = {}
        self.greets = asyncio.Event()

    async def serve(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._theirs)
        await self.greets.wait()
        self.say(GREETING)
        pending = ""
        while heard := await self._reader.read(65536):
            pending += heard.decode()
            while pending:  # requests follow each other without a mark
                message, end = json.JSONDecoder().raw_decode(pending)
                pending = pending[end:].lstrip()
                self.asked.append(message)
                command = message.get("execute") or message["exec-oob"]
                if command not in self.silent:
                    self.answer(message, command)

    def answer(self, message: dict[str, Any], command: str) -> None:
        if command in self.refused:
            answer: dict[str, Any] = {"error": {"class": "GenericError", "desc": self.refused[command]}}
        else:
            answer = {"return": self.answers.get(command, {})}
        self.say(answer | ({"id": message["id"]} if "id" in message else {}))

    def say(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def hang_up(self) -> None:
        self._writer.close()


@pytest.fixture
async def qemu() -> AsyncIterator[Qemu]:
    made = Qemu()
    task = asyncio.create_task(made.serve())
    await asyncio.sleep(0)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made.hang_up()


async def opened(
    qemu: Qemu, on_event: Callable[[Event], None] = lambda _: None, on_lost: Callable[[], None] = lambda: None
) -> Monitor:
    monitor = Monitor(SystemClock(), on_event, on_lost)
    qemu.greets.set()
    await monitor.connect(qemu.ours, 2)
    return monitor


async def test_out_of_band_is_always_switched_on(qemu: Qemu) -> None:
    monitor = await opened(qemu)
    assert qemu.asked[0] == {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
    await monitor.close()


async def test_an_answer_comes_back_typed(qemu: Qemu) -> None:
    class Status(msgspec.Struct):
        status: str

    qemu.answers["query-status"] = {"status": "running", "singlestep": False}
    monitor = await opened(qemu)
    assert (await monitor.ask(Status, "query-status")).status == "running"
    qemu.answers["query-status"] = {"status": 7}
    with pytest.raises(MonitorFailed, match="unexpected"):
        await monitor.ask(Status, "query-status")
    await monitor.close()


async def test_a_refusal_carries_qemus_words(qemu: Qemu) -> None:
    qemu.refused["cont"] = 'Failed to get "write" lock'
    monitor = await opened(qemu)
    with pytest.raises(MonitorFailed, match="write") as refused:
        await monitor.execute("cont")
    assert [reason.subject for reason in refused.value.reasons] == ["cont"]
    assert monitor.connected
    await monitor.close()


async def test_behind_a_late_answer_nothing_is_sent_but_out_of_band(qemu: Qemu) -> None:
    qemu.silent.add("query-migrate")
    monitor = await opened(qemu)
    with pytest.raises(DeadlineExceeded):
        await monitor.execute("query-migrate", deadline_s=0.05)
    for _ in range(10):  # QEMU's own queue holds eight, and then no longer hears out-of-band commands
        with pytest.raises(DeadlineExceeded):
            await monitor.execute("query-status", deadline_s=0.01)
    await monitor.execute_oob("yank", {"instances": []}, deadline_s=1)
    assert [next(iter(message.values())) for message in qemu.asked] == ["qmp_capabilities", "query-migrate", "yank"]
    qemu.answer(qemu.asked[1], "query-migrate")
    await monitor.execute("query-status", deadline_s=1)
    await monitor.close()


async def test_a_caller_that_leaves_does_not_break_the_next(qemu: Qemu) -> None:
    qemu.silent.add("query-migrate")
    monitor = await opened(qemu)
    asking = asyncio.create_task(monitor.execute("query-migrate"))
    while len(qemu.asked) < 2:
        await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    qemu.answer(qemu.asked[1], "query-migrate")
    qemu.answers["query-status"] = {"status": "running"}
    assert await monitor.execute("query-status") == {"status": "running"}
    await monitor.close()


async def test_events_are_stamped_with_the_moment_they_happened(qemu: Qemu) -> None:
    heard: list[Event] = []
    monitor = await opened(qemu, heard.append)
    wall = time.time() - 0.5
    stamp = {"seconds": int(wall), "microseconds": int(wall % 1 * 1e6)}
    qemu.say({"event": "STOP", "timestamp": stamp})
    qemu.say({"event": "RESUME", "data": {"x": 1}, "timestamp": {"seconds": 1, "microseconds": 0}})
    qemu.say({"event": "RESUME", "timestamp": {"seconds": "no"}})
    now = SystemClock().monotonic_s()
    while len(heard) < 3:
        await asyncio.sleep(0.001)
    assert [event.name for event in heard] == ["STOP", "RESUME", "RESUME"]
    assert now - heard[0].at_s == pytest.approx(0.5, abs=0.2)
    assert heard[1].data == {"x": 1}
    assert abs(heard[1].at_s - now) < 0.2  # a wall clock that was set meanwhile is not believed
    await monitor.close()


async def test_a_lost_monitor_says_so_once(qemu: Qemu) -> None:
    lost = asyncio.Event()
    qemu.silent.add("query-status")
    monitor = await opened(qemu, on_lost=lost.set)
    asking = asyncio.create_task(monitor.execute("query-status"))
    while len(qemu.asked) < 2:
        await asyncio.sleep(0.001)
    qemu.hang_up()
    with pytest.raises(MonitorFailed, match="lost"):
        await asking
    await asyncio.wait_for(lost.wait(), 2)
    assert not monitor.connected
    with pytest.raises(MonitorFailed):
        await monitor.execute("query-status")
    await monitor.close()
    await monitor.close()


async def test_one_that_does_not_greet_is_given_up(qemu: Qemu) -> None:
    monitor = Monitor(SystemClock(), lambda _: None, lambda: None)
    with pytest.raises(DeadlineExceeded):
        await monitor.connect(qemu.ours, 0.05)
    assert qemu.ours.fileno() == -1
    await monitor.close()


async def test_one_that_speaks_something_else_is_refused(qemu: Qemu) -> None:
    monitor = Monitor(SystemClock(), lambda _: None, lambda: None)
    connecting = asyncio.create_task(monitor.connect(qemu.ours, 2))
    await asyncio.sleep(0.01)
    qemu._writer.write(b"220 mail.example ESMTP\r\n")
    with pytest.raises(MonitorFailed):
        await connecting
