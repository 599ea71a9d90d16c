"""The server's end of the line, against agents that say exactly what a test wants, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from novacron.agent.dial import dialer
from novacron.clock import SystemClock
from novacron.control.line_listeners import Picture
from novacron.control.link import MAX_ASKED, Link
from novacron.errors import DeadlineExceeded, NodeUnreachable, NovaCronError, Reason, StaleGeneration, TooLarge
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Progress
from novacron.model.node import NodeFacts, NodeUsage
from novacron.wire import agent as wire
from novacron.wire import moving
from novacron.wire.membership import Beat, Plea, Question, Standing
from tests.control.serving import SECRET, on_loopback, serving

pytestmark = pytest.mark.anyio

Frame = TypeVar("Frame")

NODE = "01890000-0000-7000-8000-000000000001"
VM = "01890000-0000-7000-8000-0000000000aa"
FACTS = NodeFacts(
    hostname="n",
    kernel="6",
    architecture="x86_64",
    boot_id="b",
    cpu_model="c",
    cpu_flags=(),
    cpu_count=2,
    memory_mib=1024,
    agent_version="0",
)
PAUSE = wire.Pause(vm_id=VM, generation=1)


def hello(node_id: str = NODE, protocol: int = wire.PROTOCOL, name: str = "n") -> bytes:
    return msgspec.json.encode(wire.Hello(protocol=protocol, node_id=node_id, node_name=name, facts=FACTS, machines=()))


def report(seq: int) -> bytes:
    return msgspec.json.encode(wire.Report(seq=seq, complete=True, machines=(), usage=NodeUsage(machines_running=seq)))


class Server:
    """A Link being served, and what its listeners heard."""

    def __init__(self, link: Link, address: str) -> None:
        self.link = link
        self.address = address
        self.heard: list[Any] = []
        link.on_hello(lambda frame: self.heard.append(("hello", frame.node_name)))
        link.on_report(self._report)
        link.on_lost(lambda node_id: self.heard.append(("lost", node_id)))

    async def _report(self, node_id: str, frame: wire.Report) -> None:
        self.heard.append(("report", frame.seq))

    async def dial(self, first: bytes | None = None, secret: str = SECRET) -> ClientConnection:
        socket = await dialer(self.address, secret)()
        await socket.send(hello() if first is None else first)
        return socket

    async def agent(self, first: bytes | None = None) -> ClientConnection:
        """A welcomed agent."""
        socket = await self.dial(first)
        await next_frame(socket, wire.Welcome)
        return socket

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    async def pause(self, deadline_s: float = 5.0) -> MachineReport:
        return await self.link.call(NODE, PAUSE, MachineReport, deadline_s=deadline_s)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    link = Link(SystemClock(), SECRET, "9.9")
    async with serving(link, on_loopback(), 2 * wire.MAX_FRAME_BYTES) as address:  # the Link has its own bound
        yield Server(link, address)


async def next_frame(socket: ClientConnection, kind: type[Frame]) -> Frame:
    async with asyncio.timeout(5):
        return msgspec.json.decode(await socket.recv(), type=kind)


async def next_call(socket: ClientConnection) -> wire.Call:
    return await next_frame(socket, wire.Call)


async def closed_with(socket: ClientConnection) -> int:
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code


def paused(call: wire.Call) -> bytes:
    seen = MachineReport(vm_id=VM, generation=1, status=MachineStatus.PAUSED, since=SystemClock().wall())
    return msgspec.json.encode(wire.Reply(id=call.id, result=msgspec.Raw(msgspec.json.encode(seen))))


async def test_a_call_carries_verb_arguments_and_deadline_and_brings_the_result(server: Server) -> None:
    socket = await server.agent()
    asking = asyncio.create_task(server.pause(deadline_s=3))
    call = await next_call(socket)
    assert (call.verb, call.deadline_ms) == ("machine.pause", 3000)
    assert msgspec.json.decode(call.args, type=wire.Pause) == PAUSE
    await socket.send(paused(call))
    assert (await asking).status is MachineStatus.PAUSED
    await socket.close()


@pytest.mark.parametrize("size", [1, 300, 70_000])
async def test_a_call_of_any_length_is_one_binary_message(server: Server, size: int) -> None:
    socket = await server.agent()
    asking = asyncio.create_task(
        server.link.call(NODE, wire.Pause(vm_id="x" * size, generation=1), type(None), deadline_s=5)
    )
    async with asyncio.timeout(5):
        message = await socket.recv()
    assert isinstance(message, bytes)
    call = msgspec.json.decode(message, type=wire.Call)
    assert msgspec.json.decode(call.args, type=wire.Pause).vm_id == "x" * size
    await socket.send(msgspec.json.encode(wire.Reply(id=call.id)))
    await asking
    await socket.close()


async def test_an_agents_error_is_rebuilt_with_its_class_and_reasons(server: Server) -> None:
    socket = await server.agent()
    reasons = [Reason("generation.stale", "3 < 4", subject=VM)]
    for error, kind in (
        (StaleGeneration("old", reasons).as_data(), StaleGeneration),
        ({"code": "from_the_future", "message": "odd"}, NovaCronError),
        ({"code": "x", "reasons": "not a list"}, NovaCronError),
    ):
        asking = asyncio.create_task(server.pause())
        call = await next_call(socket)
        await socket.send(msgspec.json.encode(wire.Reply(id=call.id, error=error)))
        with pytest.raises(kind) as raised:
            await asking
        assert type(raised.value) is kind
    await socket.close()


async def test_an_answer_of_another_shape_is_an_error_not_a_crash(server: Server) -> None:
    socket = await server.agent()
    asking = asyncio.create_task(server.pause())
    call = await next_call(socket)
    await socket.send(msgspec.json.encode(wire.Reply(id=call.id, result=msgspec.Raw(b"[1]"))))
    with pytest.raises(NovaCronError, match="cannot be read"):
        await asking
    assert server.link.is_connected(NODE)
    await socket.close()


async def test_answers_may_come_in_any_order(server: Server) -> None:
    socket = await server.agent()
    texts = [str(number) for number in range(50)]
    asking = [
        asyncio.create_task(
            server.link.call(
                NODE, wire.Console(vm_id=VM, generation=1, max_bytes=int(text)), wire.ConsoleText, deadline_s=5
            )
        )
        for text in texts
    ]
    calls = [await next_call(socket) for _ in texts]
    for call in reversed(calls):
        wanted = msgspec.json.decode(call.args, type=wire.Console).max_bytes
        text = msgspec.json.encode(wire.ConsoleText(text=str(wanted), truncated=False))
        await socket.send(msgspec.json.encode(wire.Reply(id=call.id, result=msgspec.Raw(text))))
    assert [answer.text for answer in await asyncio.gather(*asking)] == texts
    await socket.close()


async def test_no_line_is_unreachable_at_once(server: Server) -> None:
    with pytest.raises(NodeUnreachable):
        await server.pause()


async def test_a_deadline_passes_and_the_agent_is_told(server: Server) -> None:
    socket = await server.agent()
    asking = asyncio.create_task(server.pause(deadline_s=0.05))
    call = await next_call(socket)
    with pytest.raises(DeadlineExceeded):
        await asking
    assert (await next_frame(socket, wire.Cancel)).id == call.id
    await socket.send(paused(call))  # too late: ignored
    asking = asyncio.create_task(server.pause())
    await socket.send(paused(await next_call(socket)))
    await asking
    await socket.close()


async def test_a_cancelled_caller_cancels_at_the_agent(server: Server) -> None:
    socket = await server.agent()
    asking = asyncio.create_task(server.pause())
    call = await next_call(socket)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await next_frame(socket, wire.Cancel)).id == call.id
    await socket.close()


async def test_a_broken_line_fails_its_calls_and_is_told_last(server: Server) -> None:
    socket = await server.agent()
    await socket.send(report(1))
    asking = asyncio.create_task(server.pause())
    await next_call(socket)
    socket.transport.abort()
    with pytest.raises(NodeUnreachable):
        await asking
    await server.until(lambda: len(server.heard) == 3)
    assert server.heard == [("hello", "n"), ("report", 1), ("lost", NODE)]
    assert not server.link.is_connected(NODE)


async def test_a_newer_line_replaces_the_older(server: Server) -> None:
    older = await server.agent(hello(name="older"))
    asking = asyncio.create_task(server.pause())
    await next_call(older)
    newer = await server.agent(hello(name="newer"))
    with pytest.raises(NodeUnreachable):
        await asking
    assert await closed_with(older) == 4409
    asking = asyncio.create_task(server.pause())
    await newer.send(paused(await next_call(newer)))
    await asking
    assert server.heard == [("hello", "older"), ("hello", "newer")]
    await newer.close()
    await server.until(lambda: server.heard[-1] == ("lost", NODE))


async def test_a_node_that_comes_back_while_its_loss_is_told_is_not_lost(server: Server) -> None:
    told: list[str] = []
    gate = asyncio.Event()

    async def slowly(node_id: str) -> None:
        await gate.wait()
        told.append("lost")

    server.link.on_lost(slowly)
    server.link.on_hello(lambda _: told.append("hello"))
    first = await server.agent()
    await server.until(lambda: told == ["hello"])
    await first.close()
    await server.until(lambda: not server.link.is_connected(NODE))
    second = await server.agent()
    gate.set()
    await server.until(lambda: len(told) == 3)
    assert told == ["hello", "lost", "hello"]
    await second.close()


@pytest.mark.parametrize("secret", ["", "wrong", SECRET[:-1], SECRET + "x", "ä"])
async def test_a_wrong_secret_never_gets_a_line(server: Server, secret: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await server.dial(secret=secret)
    assert refused.value.response.status_code == 401
    assert b"agent.secret" in (refused.value.response.body or b"")
    assert server.heard == []


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"", 1007),
        (b"\xff\xfe", 1007),
        (b"[" * 100_000, 1007),
        (b'{"t":"unheard_of"}', 1007),
        (b'{"t":"hello"}', 1007),
        (report(1), 4426),
        (hello(protocol=2), 4426),
        (hello(node_id="../../etc"), 4426),
    ],
)
async def test_whoever_greets_badly_is_closed(server: Server, first: bytes, code: int) -> None:
    assert await closed_with(await server.dial(first)) == code
    assert server.heard == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"garbage", 1007),
        (hello(), 4426),
        (b'"' + b"x" * wire.MAX_FRAME_BYTES + b'"', 1009),
        (b'{"t":"call","id":1,"verb":"machine.stop","args":{},"deadline_ms":1}', 1007),
    ],
)
async def test_a_bad_frame_ends_its_line_alone(server: Server, frame: bytes, code: int) -> None:
    other = "01890000-0000-7000-8000-000000000002"
    bystander = await server.agent(hello(node_id=other))
    socket = await server.agent()
    with contextlib.suppress(ConnectionClosed):  # the server may close while we still send
        await socket.send(frame)
    assert await closed_with(socket) == code
    await server.until(lambda: ("lost", NODE) in server.heard)
    assert server.link.is_connected(other)
    await bystander.close()


async def test_a_reply_nobody_waits_for_and_unknown_fields_are_ignored(server: Server) -> None:
    socket = await server.agent()
    await socket.send(b'{"t":"reply","id":99,"new_field":1}')
    asking = asyncio.create_task(server.pause())
    await socket.send(paused(await next_call(socket)))
    await asking
    await socket.close()


async def test_arguments_over_a_frame_are_refused_before_they_are_sent(server: Server) -> None:
    socket = await server.agent()
    large = wire.Remove(vm_id=VM, generation=1, volumes=("x" * wire.MAX_FRAME_BYTES,))
    with pytest.raises(TooLarge):
        await server.link.call(NODE, large, type(None), deadline_s=1)
    assert server.link.is_connected(NODE)
    await socket.close()


async def test_progress_usage_and_silence_are_known(server: Server) -> None:
    seen: list[Progress] = []
    server.link.on_progress("m1", seen.append)
    assert server.link.heard_ago_s(NODE) is None
    socket = await server.agent()
    one = Progress(at=SystemClock().wall(), transferred_bytes=5)
    for migration_id in ("m1", "other"):
        await socket.send(msgspec.json.encode(wire.MigrationProgress(migration_id=migration_id, progress=one)))
    await socket.send(report(7))
    await server.until(lambda: ("report", 7) in server.heard)
    assert seen == [one]
    usage, ago_s = server.link.usage(NODE), server.link.heard_ago_s(NODE)
    assert usage is not None
    assert usage.machines_running == 7
    assert ago_s is not None
    assert 0 <= ago_s < 5
    server.link.on_progress("m1", None)
    await socket.close()


async def test_a_broken_listener_does_not_keep_the_others_from_hearing(server: Server) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("listener")

    late: list[str] = []
    server.link.on_hello(breaks)
    server.link.on_hello(lambda frame: late.append(frame.node_name))
    server.link.on_progress("m1", breaks)
    socket = await server.agent()
    one = wire.MigrationProgress(migration_id="m1", progress=Progress(at=SystemClock().wall()))
    await socket.send(msgspec.json.encode(one))
    await socket.send(report(1))
    await server.until(lambda: ("report", 1) in server.heard)
    assert late == ["n"]
    await socket.close()


async def test_a_slow_listener_delays_no_migration(server: Server) -> None:
    gate = asyncio.Event()

    async def slow(node_id: str, frame: wire.Report) -> None:
        await gate.wait()

    server.link.on_report(slow)
    socket = await server.agent()
    await socket.send(report(1))
    verb = moving.Verify(vm_id=VM, generation=1, migration_id="m")
    asking = asyncio.create_task(server.link.call(NODE, verb, MachineReport, deadline_s=5.0))
    await socket.send(paused(await next_call(socket)))
    await asking
    gate.set()
    await socket.close()


async def test_who_acts_on_an_answer_has_seen_the_reports_before_it(server: Server) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def slow(node_id: str, frame: wire.Report) -> None:
        entered.set()
        await gate.wait()
        server.heard.append("seen")

    server.link.on_report(slow)
    socket = await server.agent()
    asking = asyncio.create_task(server.pause())
    call = await next_call(socket)
    await socket.send(report(1))
    await socket.send(paused(call))
    await entered.wait()
    await socket.send(report(2))
    await server.until(lambda: server.link.usage(NODE) == NodeUsage(machines_running=2))  # read past the answer
    assert not asking.done()
    gate.set()
    await asking
    assert "seen" in server.heard
    await socket.close()


async def test_reports_without_end_drop_the_line_not_the_memory(server: Server) -> None:
    gate = asyncio.Event()

    async def slow(node_id: str, frame: wire.Report) -> None:
        await gate.wait()

    server.link.on_report(slow)
    socket = await server.agent()

    with contextlib.suppress(ConnectionClosed):
        for seq in range(3000):
            await socket.send(report(seq))
    assert await closed_with(socket) == 1013
    await server.until(lambda: not server.link.is_connected(NODE))
    gate.set()


async def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="anybody"):
        Link(SystemClock(), "", "9.9")


def test_a_line_remembers_what_its_node_has_and_no_longer_has() -> None:
    def machine(vm_id: str, status: MachineStatus) -> MachineReport:
        return MachineReport(vm_id=vm_id, generation=1, status=status, since=SystemClock().wall())

    def told(*machines: MachineReport, complete: bool, networks: tuple[str, ...] | None) -> wire.Report:
        return wire.Report(seq=1, complete=complete, machines=machines, usage=NodeUsage(), networks=networks)

    picture = Picture(wire.Hello(protocol=1, node_id=NODE, node_name="n", facts=FACTS, machines=(), networks=("old",)))
    both = machine("a", MachineStatus.RUNNING), machine("b", MachineStatus.RUNNING)
    picture.take(told(*both, complete=True, networks=("new",)))
    picture.take(told(machine("b", MachineStatus.CRASHED), complete=False, networks=None))
    now = picture.hello()
    assert [(one.vm_id, one.status.value) for one in now.machines] == [("a", "running"), ("b", "crashed")]
    assert now.networks == ("new",)
    picture.take(told(machine("a", MachineStatus.RUNNING), complete=True, networks=None))
    assert [one.vm_id for one in picture.hello().machines] == ["a"]
    assert picture.hello().networks == ("new",), "an older agent does not say"


async def test_pleas_for_time_are_answered_while_heartbeats_wait_for_a_store_that_is_away(server: Server) -> None:
    async def answer(node_id: str, question: Question) -> Standing:
        if isinstance(question, Beat):
            await asyncio.Event().wait()
        return Standing(id=question.id, counted=True)

    server.link.on_question(None, answer)
    socket = await server.agent()
    for number in range(2 * MAX_ASKED):
        await socket.send(msgspec.json.encode(Beat(id=number, epoch=1, beats=number, ttl_s=15)))
    await socket.send(msgspec.json.encode(Plea(id=99)))
    assert await next_frame(socket, Standing) == Standing(id=99, counted=True)
    await socket.close()
