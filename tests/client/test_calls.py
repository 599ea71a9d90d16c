"""Calls over real HTTP: what is sent, what is read, what is tried again and what never is."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.client import devices, images, migrations, nodes, vms
from novacron.client.call import consistent
from novacron.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NoRoom,
    NotFound,
    NovaCronError,
    PreconditionFailed,
    Reason,
    StateConflict,
    Unavailable,
)
from tests.client.conftest import Connect, Face
from tests.client.control_room import ControlRoom, image, migration, node, refused, said, vm
from tests.client.served import served


def test_a_vm_is_created_from_what_was_given_and_nothing_else(room: ControlRoom, client: Face) -> None:
    room.on("POST", "/vms", said(vm(state="creating"), 202))
    wish = vms.VmCreate(
        name="web-1", image="debian-12", vcpus=2, nics=[devices.NicIn(forwards=[devices.ForwardIn(guest_port=22)])]
    )

    made = client.do(vms.create(wish))

    assert made.name == "web-1"
    assert made.state == "creating"
    assert json.loads(room.bodies[0]) == {
        "name": "web-1",
        "image": "debian-12",
        "vcpus": 2,
        "nics": [{"forwards": [{"guest_port": 22}]}],
    }
    assert room.asked[0].headers["authorization"] == "Bearer secret"


def test_every_noun_is_read(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/nodes/node-1", said(node()))
    room.on("GET", "/images/debian-12", said(image()))
    room.on("GET", f"/migrations/{migration()['id']}", said(migration()))

    assert client.do(nodes.get("node-1")).facts.cpu_count == 4
    assert client.do(images.get("debian-12")).files[0].format == "qcow2"
    assert client.do(migrations.get(migration()["id"])).progress.iteration == 1


def test_a_field_of_a_newer_server_is_no_trouble(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm() | {"mood": "bright", "state": "hibernating"}))
    assert client.do(vms.get("web-1")).state == "hibernating"


def test_pages_are_fetched_until_the_end(room: ControlRoom, client: Face) -> None:
    room.on(
        "GET",
        "/vms",
        said({"items": [vm(name="a"), vm(name="b")], "next_cursor": "c2"}),
        said({"items": [vm(name="c")], "next_cursor": None}),
    )
    found = client.listed(vms.search(labels=["tier=web", "stage!=test"], state="running", limit=2))

    assert [one.name for one in found] == ["a", "b", "c"]
    first, second = (request.query_params for request in room.asked)
    assert first.getlist("label") == ["tier=web", "stage!=test"]
    assert (first["state"], first["limit"]) == ("running", "2")
    assert "cursor" not in first
    assert second["cursor"] == "c2"
    assert second.getlist("label") == ["tier=web", "stage!=test"]
    assert (second["state"], second["limit"]) == ("running", "2")


def test_if_match_and_the_field_that_stays(room: ControlRoom, client: Face) -> None:
    room.on("PATCH", "/vms/web-1", refused(PreconditionFailed("the record has changed")))
    with pytest.raises(PreconditionFailed, match="has changed"):
        client.do(vms.update("web-1", vms.VmUpdate(vcpus=4), revision=10))
    assert room.asked[0].headers["if-match"] == '"10"'
    assert json.loads(room.bodies[0]) == {"vcpus": 4}
    assert len(room.asked) == 1


def test_an_error_keeps_its_code_and_reasons(room: ControlRoom, client: Face) -> None:
    reasons = [Reason("memory.short", "4096 MiB asked, 512 MiB free", subject="node-1", remedy="choose another node")]
    room.on("POST", "/vms", refused(NoRoom("no node can take web-1", reasons)))
    with pytest.raises(NoRoom) as caught:
        client.do(vms.create(vms.VmCreate(name="web-1", image="debian-12")))
    assert caught.value.message == "no node can take web-1"
    assert caught.value.reasons == tuple(reasons)


def test_an_unknown_code_is_filed_by_its_status(room: ControlRoom, client: Face) -> None:
    body = b'{"code": "quota_exceeded", "detail": "no more", "status": 403}'
    room.on("POST", "/vms/web-1/start", Response(body, 403, media_type="application/problem+json"))
    with pytest.raises(Forbidden, match="no more"):
        client.do(vms.start("web-1"))


@pytest.mark.parametrize(
    "answer",
    [Response("<html>hello</html>", 200), Response(b"\xff\xfe", 200), said({"items": "none"}), said([])],
)
def test_what_is_no_answer_of_ours_is_said_so(room: ControlRoom, client: Face, answer: Response) -> None:
    room.on("GET", "/vms/web-1", answer)
    with pytest.raises(Unavailable, match="not a NovaCron server") as caught:
        client.do(vms.get("web-1"))
    assert "--server" in caught.value.reasons[0].remedy


def test_a_plain_404_is_still_not_found(client: Face) -> None:
    with pytest.raises(NotFound, match="HTTP 404 without a reason"):
        client.do(vms.get("nothing-here"))


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../nodes/x", "a?x=1", "A", "-x", "a\n", "a%2e", "x" * 64])
def test_a_name_that_is_none_never_reaches_a_path(room: ControlRoom, client: Face, name: str) -> None:
    with pytest.raises(InvalidInput):
        client.do(vms.delete(name))
    assert room.asked == []


# -- again, or never again ---------------------------------------------------------------------------------


def test_a_keyed_write_is_tried_again_with_the_same_key(room: ControlRoom, connect: Connect, address: str) -> None:
    notices: list[str] = []
    room.on("POST", "/vms/web-1/start", refused(Unavailable("no leader")), said(vm(), 202))
    connect(address, on_notice=notices.append).do(vms.start("web-1"))
    keys = {request.headers["idempotency-key"] for request in room.asked}
    assert len(room.asked) == 2
    assert len(keys) == 1
    assert "no leader; trying again" in notices[0]


def test_two_calls_have_two_keys(room: ControlRoom, client: Face) -> None:
    room.on("POST", "/vms/web-1/start", said(vm(), 202))
    client.do(vms.start("web-1"))
    client.do(vms.start("web-1"))
    first, second = (request.headers["idempotency-key"] for request in room.asked)
    assert first != second


def test_a_given_key_is_used(room: ControlRoom, client: Face) -> None:
    room.on("POST", "/vms/web-1/start", said(vm(), 202))
    client.do(vms.start("web-1"), key="mine")
    assert room.asked[0].headers["idempotency-key"] == "mine"


def test_a_consistent_call_says_so(room: ControlRoom, client: Face, connect: Connect, address: str) -> None:
    room.on("GET", "/vms/web-1", *[said(vm())] * 3)
    room.on("GET", "/vms", said({"items": [], "next_cursor": None}))
    client.do(vms.get("web-1"))
    client.do(consistent(vms.get("web-1")))
    client.listed(consistent(vms.search(labels=["a=b"])))
    connect(address, consistent=True).do(vms.get("web-1"))
    queries = [dict(request.query_params) for request in room.asked]
    newest = {"consistent": "true"}
    assert queries == [{}, newest, {"label": "a=b", "limit": "500"} | newest, newest]


def test_trying_ends(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", refused(Unavailable("no leader")))
    with pytest.raises(Unavailable, match="no leader"):
        client.do(vms.get("web-1"))
    assert len(room.asked) == 4


@pytest.mark.parametrize(
    "call", [vms.delete("web-1"), vms.update("web-1", vms.VmUpdate(vcpus=1)), nodes.delete("node-1")]
)
def test_what_is_not_keyed_is_sent_once(room: ControlRoom, client: Face, call: object) -> None:
    for method in ("DELETE", "PATCH"):
        room.on(method, "/vms/web-1", refused(Unavailable("no leader")))
        room.on(method, "/nodes/node-1", refused(Unavailable("no leader")))
    with pytest.raises(Unavailable):
        client.do(call)
    assert len(room.asked) == 1


def test_a_refusal_is_not_tried_again(room: ControlRoom, client: Face) -> None:
    room.on("POST", "/vms/web-1/stop", refused(StateConflict("it is stopped")))
    with pytest.raises(StateConflict):
        client.do(vms.stop("web-1"))
    assert len(room.asked) == 1


@pytest.fixture
def cut_off() -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes two requests and hangs up without an answer, then answers the third."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []
    body = json.dumps(vm()).encode()

    def serve() -> None:
        for turn in range(3):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                seen.append(connection.recv(65536))
                if turn == 2:
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_broken_connection_is_tried_again(cut_off: tuple[str, list[bytes]], connect: Connect) -> None:
    address, seen = cut_off
    assert connect(address).do(vms.restart("web-1")).name == "web-1"
    keys = {line for request in seen for line in request.split(b"\r\n") if line.lower().startswith(b"idempotency")}
    assert len(seen) == 3
    assert len(keys) == 1


def test_a_broken_connection_says_that_the_outcome_is_unknown(
    cut_off: tuple[str, list[bytes]], connect: Connect
) -> None:
    address, seen = cut_off
    with pytest.raises(Unavailable, match="ended before an answer came") as caught:
        connect(address).do(vms.delete("web-1"))
    assert caught.value.reasons[0].message == "the outcome is unknown"
    assert len(seen) == 1


def test_nobody_there(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=f"cannot reach the server at http://127.0.0.1:{port}") as caught:
        connect(f"http://127.0.0.1:{port}").do(vms.get("web-1"))
    assert "novacron server run" in caught.value.reasons[0].remedy


def test_no_answer_in_time_is_not_tried_again(room: ControlRoom, connect: Connect, address: str) -> None:
    import anyio

    async def never(_: Request) -> Response:
        await anyio.sleep(5)
        return said(vm())

    room.on("GET", "/vms/web-1", never)
    with pytest.raises(DeadlineExceeded, match=r"no answer in 0.2 s: the outcome is unknown"):
        connect(address, answer_within_s=0.2).do(vms.get("web-1"))
    assert len(room.asked) == 1


# -- the ways to a server ----------------------------------------------------------------------------------


def test_by_unix_socket(room: ControlRoom, connect: Connect, tmp_path: Path) -> None:
    room.on("GET", "/vms/web-1", said(vm()))
    with served(room.app, unix=tmp_path / "api.sock") as address:
        client = connect(address)
        assert client.do(vms.get("web-1")).name == "web-1"
        seq = room.happen("vm.updated", vm())
        assert [event.seq for event in client.first_events(1, after=1)] == [seq]


def test_by_tls_with_the_given_ca_alone(room: ControlRoom, connect: Connect, certificate: tuple[Path, Path]) -> None:
    room.on("GET", "/vms/web-1", said(vm()))
    cert, key = certificate
    with served(room.app, ssl_certfile=str(cert), ssl_keyfile=str(key)) as address:
        client = connect(address, ca_file=cert)
        assert client.do(vms.get("web-1")).name == "web-1"
        seq = room.happen("vm.updated", vm())
        assert [event.seq for event in client.first_events(1, after=1)] == [seq]
        stranger = connect(address)
        with pytest.raises(Unavailable, match="cannot trust the server") as caught:
            stranger.do(vms.delete("web-1"))
        assert "--ca-file" in caught.value.reasons[0].remedy
        with pytest.raises(Unavailable, match="cannot trust the server"):
            stranger.first_events(1)


def test_the_environment_has_no_say(
    room: ControlRoom, connect: Connect, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    room.on("GET", "/vms/web-1", said(vm()))
    client = connect(address)
    assert client.do(vms.get("web-1")).name == "web-1"
    room.happen("vm.updated", vm())
    assert client.first_events(1, after=1)


def test_a_token_that_cannot_travel_is_not_repeated(connect: Connect) -> None:
    with pytest.raises(InvalidInput) as caught:
        connect("http://127.0.0.1:1", "geheim\nX-Evil: 1")
    assert "geheim" not in str(caught.value.as_data())


def test_an_answer_without_end_is_cut(room: ControlRoom, client: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novacron.client.line.MAX_ANSWER_BYTES", 1000)
    room.on("GET", "/vms/web-1", said(vm(description="x" * 1000)))
    with pytest.raises(NovaCronError, match="its answer is longer"):
        client.do(vms.get("web-1"))
