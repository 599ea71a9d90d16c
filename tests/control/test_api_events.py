"""The event stream over a real socket: nothing missed, nothing twice, or told to list again; slow ones let go."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from novacron.config import ServerConfig
from novacron.control import channel, stream
from novacron.control.listen import server_for, tcp
from novacron.control.store.kinds import VMS
from novacron.control.store.records import remove
from novacron.model.event import revision_of, seq_of
from novacron.model.machine import MachineStatus
from novacron.wire.rest.images import Image
from novacron.wire.rest.migrations import Migration
from novacron.wire.rest.nodes import Node
from novacron.wire.rest.vms import Vm
from tests.control.api import Api, problem_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def url(api: Api, tmp_path: Path) -> AsyncIterator[str]:
    """The API on a loopback port, served as the process serves it."""
    listening = tcp("127.0.0.1", 0)
    server = server_for(api.app, ServerConfig(data_dir=tmp_path, pool_dir=tmp_path), tls=False)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    await server.is_up()
    yield f"ws://127.0.0.1:{listening.getsockname()[1]}/api/v1/events"
    server.should_exit = True
    await running


@contextlib.asynccontextmanager
async def subscribed(api: Api, url: str, **wanted: Any) -> AsyncIterator[ClientConnection]:
    headers = {"authorization": f"Bearer {api.token}"}
    async with connect(url, additional_headers=headers, max_queue=None) as socket:
        await socket.send(json.dumps({"t": "subscribe", **wanted}))
        yield socket


async def frame(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(5):
        read: dict[str, Any] = json.loads(await socket.recv())
    return read


async def until_ready(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """The events before `ready`, and its number."""
    events = []
    while (read := await frame(socket))["t"] != "ready":
        assert read["t"] == "event", read
        events.append(read["event"])
    return events, read["seq"]


async def touch(api: Api, ref: str, text: str) -> int:
    """Change a VM; the revision."""
    stored = await api.records.change(
        VMS, api.records.find(VMS, ref).record.id, lambda vm: msgspec.structs.replace(vm, description=text)
    )
    assert stored is not None
    return stored.modified


async def test_every_kind_of_change_comes_as_the_api_shows_it(api: Api, url: str) -> None:
    async with subscribed(api, url) as socket:
        assert (await frame(socket))["t"] == "ready"
        node, _ = await api.node("node-1"), await api.node("node-2")
        image = await api.image()
        stored = await api.vm(node=node, status=MachineStatus.RUNNING)
        await api.http.post("/api/v1/migrations", json={"vm": "web-1"})
        await api.records.commit(remove(VMS, api.records.find(VMS, "web-1")))
        events = [(await frame(socket))["event"] for _ in range(7)]
    assert [event["type"] for event in events] == [
        "node.created",
        "node.created",
        "image.created",
        "vm.created",
        "migration.created",
        "vm.updated",
        "vm.deleted",
    ]
    models = {"node": Node, "image": Image, "vm": Vm, "migration": Migration}
    for event in events:
        shown = models[event["object_type"]].model_validate_json(json.dumps(event["object"]))
        assert event["object_id"] == shown.id
        assert revision_of(event["seq"]) == shown.revision
    assert events[2]["object_id"] == image.id
    assert events[-1]["object"]["id"] == stored.record.id
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})


async def test_networks_and_security_groups_come_too(api: Api, url: str) -> None:
    async with subscribed(api, url) as socket:
        assert (await frame(socket))["t"] == "ready"
        network = (await api.http.post("/api/v1/networks", json={"name": "n", "ipv4": "10.20.0.0/24"})).json()
        group = (await api.http.post("/api/v1/security_groups", json={"name": "g"})).json()
        await api.http.delete("/api/v1/networks/n")
        events = [(await frame(socket))["event"] for _ in range(3)]
    assert [one["type"] for one in events] == ["network.created", "security_group.created", "network.deleted"]
    assert [one["object"] for one in events[:2]] == [network, group]


async def test_filters_let_through_what_was_asked_for(api: Api, url: str) -> None:
    one = await api.vm("one", labels={"tier": "web"})
    await api.vm("two")
    async with contextlib.AsyncExitStack() as stack:
        by_type = await stack.enter_async_context(subscribed(api, url, object_types=["node"]))
        by_id = await stack.enter_async_context(subscribed(api, url, ids=[one.record.id]))
        by_label = await stack.enter_async_context(subscribed(api, url, labels={"tier": "web"}))
        for socket in (by_type, by_id, by_label):
            await until_ready(socket)
        await touch(api, "two", "x")
        await touch(api, "one", "y")
        await api.node("node-9")
        await api.http.patch("/api/v1/vms/one", json={"labels": {}})  # it leaves the label: that is still told
        await touch(api, "one", "z")
        await api.http.patch("/api/v1/vms/one", json={"labels": {"tier": "web"}})
        assert (await frame(by_type))["event"]["object"]["name"] == "node-9"
        assert [(await frame(by_id))["event"]["object"]["description"] for _ in range(2)] == ["y", "y"]
        assert (await frame(by_id))["event"]["object"]["description"] == "z"
        labelled = [(await frame(by_label))["event"]["object"] for _ in range(3)]
        assert [(vm["description"], vm["labels"]) for vm in labelled] == [
            ("y", {"tier": "web"}),
            ("y", {}),
            ("z", {"tier": "web"}),
        ]


async def test_a_listener_that_comes_and_goes_misses_nothing_and_hears_nothing_twice(api: Api, url: str) -> None:
    await api.vm("a")
    await api.vm("b")
    start = seq_of(api.records.revision, 1023)
    written: list[int] = []

    async def write() -> None:
        for number in range(150):
            written.append(await touch(api, "ab"[number % 2], str(number)))
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    heard: list[int] = []
    after, rounds = start, 0
    while not writing.done() or not heard or revision_of(heard[-1]) < written[-1]:
        rounds += 1
        async with subscribed(api, url, after=after, object_types=["vm"]) as socket:
            events, _ = await until_ready(socket)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02 if not writing.done() else 0.3):
                    while len(events) < 12 * rounds:
                        events.append(json.loads(await socket.recv())["event"])
        heard += [event["seq"] for event in events]
        after = heard[-1] if heard else after
    await writing
    assert [revision_of(seq) for seq in heard] == written
    assert rounds > 1


async def test_a_transaction_over_two_records_resumes_in_its_middle(api: Api, url: str) -> None:
    source = await api.node("node-1")
    await api.node("node-2")
    await api.vm(node=source, status=MachineStatus.RUNNING)
    revision = (await api.http.post("/api/v1/migrations", json={"vm": "web-1"})).json()["revision"]
    async with subscribed(api, url, after=seq_of(revision - 1, 1023)) as socket:
        whole, _ = await until_ready(socket)
    assert [event["type"] for event in whole] == ["migration.created", "vm.updated"]
    async with subscribed(api, url, after=whole[0]["seq"]) as socket:
        rest, ready = await until_ready(socket)
    assert [event["seq"] for event in rest] == [whole[1]["seq"]]
    async with subscribed(api, url, after=ready) as socket:
        assert (await until_ready(socket))[0] == []


@pytest.mark.parametrize("after", [0, 5])
async def test_a_new_store_is_ready_at_once_with_nothing_but_its_pool(api: Api, url: str, after: int) -> None:
    async with subscribed(api, url, after=after) as socket:
        assert [event["type"] for event in (await until_ready(socket))[0]] == ["pool.created"]


async def test_what_is_no_longer_kept_is_told_and_the_stream_goes_on(api: Api, url: str) -> None:
    await api.vm("a")
    for number in range(5):
        await touch(api, "a", str(number))
    await api.records.store.compact(api.records.revision - 1)
    async with subscribed(api, url, after=1024) as socket:
        resync = await frame(socket)
        assert (resync["t"], revision_of(resync["seq"])) == ("resync", api.records.revision)
        assert (await frame(socket))["t"] == "ready"
        revision = await touch(api, "a", "live")
        assert revision_of((await frame(socket))["event"]["seq"]) == revision


async def test_a_number_from_another_store_is_told(api: Api, url: str) -> None:
    async with subscribed(api, url, after=seq_of(10**6, 0)) as socket:
        assert (await frame(socket))["t"] == "resync"


@pytest.mark.parametrize(
    "first",
    ["{", "[]", '{"t": "hello"}', '{"t": "subscribe", "object_type": []}', '{"t": "subscribe", "after": "x"}',
     '{"t": "subscribe", "object_types": ["secret"]}', " " * 70_000, b"\xff"],
)  # fmt: skip
async def test_a_wrong_first_frame_is_answered_and_closed(api: Api, url: str, first: str | bytes) -> None:
    async with connect(url, additional_headers={"authorization": f"Bearer {api.token}"}) as socket:
        await socket.send(first)
        told = await frame(socket)
        assert (told["t"], told["code"]) == ("error", "invalid_input")
        with pytest.raises(websockets.ConnectionClosed):
            await frame(socket)
        assert socket.close_code == 1008


async def test_a_connection_subscribes_once(api: Api, url: str) -> None:
    async with subscribed(api, url) as socket:
        await until_ready(socket)
        await socket.send('{"t": "subscribe"}')
        assert (await frame(socket))["t"] == "error"


async def test_without_a_first_frame_the_line_is_closed(api: Api, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SUBSCRIBE_WITHIN_S", 0.05)
    async with connect(url, additional_headers={"authorization": f"Bearer {api.token}"}) as socket:
        assert (await frame(socket))["t"] == "error"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer nct_wrong"}, 401),
        ({"authorization": "Basic OmFiYw=="}, 401),
        ({"authorization": "Bearer {token}", "origin": "https://evil.example"}, 403),
        ({"authorization": "Bearer {token}", "origin": "null"}, 403),
        ({"authorization": "Bearer {token}", "origin": "http://127.0.0.1.evil.example"}, 403),
        ({"authorization": "Bearer {token}", "origin": ""}, 403),
    ],
)
async def test_strangers_and_pages_of_others_do_not_get_in(
    api: Api, url: str, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(token=api.token) for name, value in headers.items()}
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(url, additional_headers=sent):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["status"] == status
    with pytest.raises(websockets.InvalidStatus):
        async with connect(f"{url}?token={api.token}"):
            pass


async def test_a_browser_brings_its_token_as_a_subprotocol(api: Api, url: str) -> None:
    origin = url.replace("ws://", "http://").removesuffix("/api/v1/events")
    offered = [stream.SUBPROTOCOL, f"bearer.{api.token}"]
    async with connect(url, subprotocols=offered, origin=origin) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == stream.SUBPROTOCOL
        await socket.send('{"t": "subscribe"}')
        await until_ready(socket)


async def test_one_that_does_not_keep_up_is_let_go_and_the_others_are_not_held_up(
    api: Api, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_WAITING", 50)
    await api.vm("a")
    headers = {"authorization": f"Bearer {api.token}"}
    async with connect(url, additional_headers=headers, max_queue=1) as slow, subscribed(api, url) as quick:
        await slow.send('{"t": "subscribe"}')
        await until_ready(slow)
        await until_ready(quick)
        slow.transport.pause_reading()  # its window fills, then its queue
        for number in range(600):
            revision = await touch(api, "a", "x" * 200_000 + str(number))
            assert revision_of((await frame(quick))["event"]["seq"]) == revision
            if _listeners(api) == 1:
                break
        assert _listeners(api) == 1
        slow.transport.resume_reading()
        async with asyncio.timeout(10):
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await slow.recv()
        assert slow.close_code in (1013, 1006)  # told to try again later, or not even that could be sent


def _listeners(api: Api) -> int:
    events: stream.Stream = api.app.state.events
    return events.subscribers


async def test_documents_are_not_upgraded(api: Api) -> None:
    problem_of(await api.http.get("/api/v1/events"), 404, "not_found")
