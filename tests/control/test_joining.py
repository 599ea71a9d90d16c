"""Joining over real TLS: who gets a certificate, what it opens, and every attempt that is refused, with its reason."""

from __future__ import annotations

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest
import structlog
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus, WebSocketException

from novacron.agent import credentials, enrolment
from novacron.agent.dial import dialer
from novacron.control.joining import authority, ledger
from novacron.control.joining.certificates import fingerprint, new_ca, new_key
from novacron.control.joining.door import ByCertificate
from novacron.control.store.kinds import NODES
from novacron.errors import Conflict, Forbidden, NameTaken, NovaCronError, Unauthenticated, Unavailable
from novacron.model.node import NodeState
from novacron.model.node_identity import NodeIdentity
from novacron.wire import joining as wire
from novacron.wire.agent import Hello
from tests.agent.waiting import until
from tests.control.cluster import Cluster, Node, a_cluster, closed_with

pytestmark = pytest.mark.anyio

HOUR = datetime.timedelta(hours=1)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path) as made:
        yield made


async def refused(node: Node, carried: str, **changed: object) -> NovaCronError:
    """The refusal of a join in which these fields were changed."""
    with pytest.raises(NovaCronError) as caught:
        await node.join(carried, lambda ask: msgspec.structs.replace(ask, **changed))
    assert not node.badge.is_there
    return caught.value


def codes(error: NovaCronError) -> list[str]:
    assert all(reason.remedy for reason in error.reasons), error.reasons
    return [reason.code for reason in error.reasons]


async def turned_away(node: Node) -> NovaCronError:
    """How the door answers a line."""
    with pytest.raises(InvalidStatus) as caught:
        await node.dial()
    response = caught.value.response
    return enrolment.refusal(bytes(response.body or b""), response.status_code)


async def test_a_node_joins_and_speaks_for_itself_alone(cluster: Cluster) -> None:
    node = await cluster.node(1)
    assert (node.state / "identity" / "node.pem").stat().st_mode & 0o077 == 0
    line = await node.line()
    await until(lambda: cluster.house.records.get(NODES, node.id) is not None)
    other = await cluster.node(2)
    for hello in (node.hello(node_id=other.id, name=other.name), node.hello(node_id=other.id)):
        code, reason = await closed_with(await node.dial(hello))
        assert code == 4403
        assert "another" in reason
    code, reason = await closed_with(await node.dial(node.hello(name="node-9")))
    assert (code, "joined as node-1" in reason) == (4403, True)
    assert cluster.house.records.get(NODES, other.id) is None
    assert line.close_code is None  # and what strangers try ends no line of anybody
    await line.close()


async def test_a_token_is_for_once(cluster: Cluster) -> None:
    token = await cluster.token()
    await Node(cluster, 1, "node-1").join(token)
    assert codes(await refused(Node(cluster, 2, "node-2"), token)) == ["join_token.used"]


async def test_what_is_asked_twice_with_one_key_is_done_once(cluster: Cluster) -> None:
    key = {"idempotency-key": "k1"}
    async with cluster.http() as http:
        made = await http.post("/api/v1/node-tokens", json={"node": "node-1"}, headers=key)
        again = await http.post("/api/v1/node-tokens", json={"node": "node-1"}, headers=key)
        assert (made.status_code, again.status_code) == (201, 409)
        assert again.json()["reasons"][0]["remedy"] == "ask again with a new key"
        node = Node(cluster, 1, "node-1")
        await node.join(made.json()["token"])
        await (await node.line()).close()
        await until(lambda: cluster.house.records.get(NODES, node.id) is not None)
        key = {"idempotency-key": "k2"}
        assert (await http.post("/api/v1/nodes/node-1/revoke", headers=key)).status_code == 200
        await node.join(await cluster.token(node="node-1"))
        assert (await http.post("/api/v1/nodes/node-1/revoke", headers=key)).status_code == 200
    await (await node.line()).close()  # a late repeat does not revoke the newer join


async def test_a_token_used_by_many_at_once_lets_one_in(cluster: Cluster) -> None:
    token = await cluster.token()
    nodes = [Node(cluster, number, f"node-{number}") for number in range(1, 7)]
    done = await asyncio.gather(*(node.join(token) for node in nodes), return_exceptions=True)
    assert [type(one) for one in done if one is not None] == [Unauthenticated] * 5
    assert sum(node.badge.is_there for node in nodes) == 1


async def test_a_token_expires(cluster: Cluster) -> None:
    token = await cluster.token(lasts_s=60)
    cluster.clock.ahead = datetime.timedelta(seconds=61)
    failed = await refused(Node(cluster, 1, "node-1"), token)
    assert codes(failed) == ["join_token.expired"]
    assert "clock" in failed.message


async def test_a_token_that_was_never_made_opens_nothing(cluster: Cluster) -> None:
    token = await cluster.token()
    assert codes(await refused(Node(cluster, 1, "node-1"), token, token="ncj_" + "A" * 43)) == ["join_token.unknown"]
    await Node(cluster, 1, "node-1").join(token)


async def test_the_store_has_hashes_of_tokens_only(cluster: Cluster) -> None:
    token = await cluster.token()
    secret = token.partition(".")[0]
    page = await cluster.house.records.store.list("")
    assert any(entry.key == ledger.token_key(secret) for entry in page.entries)
    assert not any(secret in entry.key or secret.encode() in entry.value for entry in page.entries)


async def test_a_server_of_another_cluster_is_told_nothing(cluster: Cluster) -> None:
    token = await cluster.token()
    stranger = fingerprint(new_ca(new_key(), cluster.clock.wall()))
    failed = await refused(Node(cluster, 1, "node-1"), f"{token.partition('.')[0]}.{stranger}")
    assert codes(failed) == ["ca.fingerprint"]
    await Node(cluster, 1, "node-1").join(token)  # it was never sent


async def test_a_request_that_was_changed_or_asks_for_more_is_refused(cluster: Cluster) -> None:
    token = await cluster.token()
    secret = token.partition(".")[0]
    node, other = Node(cluster, 1, "node-1"), Node(cluster, 2, "node-2")
    _, theirs = credentials.request(other.id, other.name, secret)
    assert codes(await refused(node, token, csr_pem=theirs)) == ["csr.token"]
    _, unbound = credentials.request(node.id, node.name)
    assert codes(await refused(node, token, csr_pem=unbound)) == ["csr.token"]
    _, bound_elsewhere = credentials.request(node.id, node.name, "ncj_" + "B" * 43)
    assert codes(await refused(node, token, csr_pem=bound_elsewhere)) == ["csr.token"]
    assert codes(await refused(node, token, csr_pem=_tampered(node, secret))) == ["csr.signature"]
    assert codes(await refused(node, token, node_id=other.id)) == ["csr.token"]
    assert codes(await refused(node, token, csr_pem="-----")) == ["field.invalid"]
    with structlog.testing.capture_logs() as logged:
        assert codes(await refused(node, token, node_name="a\nb")) == ["field.invalid"]
    assert "\n" not in logged[0]["node"]
    await node.join(token)  # none of that used it up


def _tampered(node: Node, secret: str) -> str:
    """A request whose signature is of another."""
    import base64

    _, csr_pem = credentials.request(node.id, node.name, secret)
    lines = csr_pem.strip().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[-1] ^= 1
    return "\n".join((lines[0], base64.b64encode(der).decode(), lines[-1])) + "\n"


async def test_two_nodes_of_one_name_are_refused(cluster: Cluster) -> None:
    first = await cluster.node(1, "web")
    failed = await refused(Node(cluster, 2, "web"), await cluster.token())
    assert isinstance(failed, NameTaken)
    assert codes(failed) == ["node.name_taken"]
    await (await first.line()).close()


async def test_a_token_for_anybody_takes_nobodys_place(cluster: Cluster) -> None:
    node = await cluster.node(1)
    line = await node.line()
    thief = Node(cluster, 1, "node-1")
    thief.badge = credentials.Badge(cluster.directory / "thief")
    (cluster.directory / "thief").mkdir()
    assert codes(await refused(thief, await cluster.token())) == ["node.known"]
    assert codes(await refused(thief, await cluster.token(node="node-2"))) == ["join_token.other_node"]
    assert line.close_code is None
    await thief.join(await cluster.token(node="node-1"))  # meant: the one before is shown out at once
    assert (await closed_with(line))[0] == 4401
    assert codes(await turned_away(node)) == ["certificate.superseded"]
    await (await thief.line()).close()


async def test_a_revoked_node_is_out_at_once_and_stays_out(cluster: Cluster) -> None:
    node = await cluster.node(1)
    line = await node.line()
    await until(lambda: cluster.house.records.get(NODES, node.id) is not None)
    async with cluster.http() as http:
        assert (await http.post("/api/v1/nodes/node-1/revoke")).json()["node"] == "node-1"
        assert (await http.post("/api/v1/nodes/node-1/revoke")).status_code == 200
    code, reason = await closed_with(line)
    assert (code, "revoked" in reason) == (4401, True)
    assert codes(await turned_away(node)) == ["certificate.revoked"]
    with pytest.raises(Unauthenticated):
        await node.renew()


async def test_a_deleted_node_is_revoked_with_it(cluster: Cluster) -> None:
    node = await cluster.node(1)
    await (await node.line()).close()
    await until(lambda: cluster.house.records.get(NODES, node.id) is not None)
    await cluster.house.records.change(NODES, node.id, lambda now: msgspec.structs.replace(now, state=NodeState.DOWN))
    async with cluster.http() as http:
        assert (await http.delete("/api/v1/nodes/node-1")).status_code == 204
    assert codes(await turned_away(node)) == ["certificate.revoked"]
    await Node(cluster, 1, "node-1").join(await cluster.token())
    await (await node.line()).close()


async def test_a_renewed_certificate_keeps_the_line_that_the_old_one_opened(cluster: Cluster) -> None:
    node = await cluster.node(1)
    before = node.badge.certificate()
    line = await node.line()
    cluster.clock.ahead = HOUR * 2 / 3
    await node.renew()
    after = node.badge.certificate()
    assert after.not_valid_after_utc - before.not_valid_after_utc >= HOUR / 2
    assert after.public_key() != before.public_key()
    cluster.clock.ahead = HOUR * 1.1  # the old one is over, the new one is not
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):  # two looks of the door's
            await closed_with(line)
    cluster.clock.ahead = HOUR * 2
    code, reason = await closed_with(line)
    assert (code, "expired" in reason) == (4401, True)


async def test_an_expired_certificate_and_a_clock_that_is_off_are_told_apart(cluster: Cluster) -> None:
    node = await cluster.node(1)
    cluster.clock.ahead = -HOUR
    early = await turned_away(node)
    assert codes(early) == ["certificate.clock"]
    assert "clock" in early.message
    cluster.clock.ahead = HOUR * 2
    assert codes(await turned_away(node)) == ["certificate.expired"]
    with pytest.raises(Unauthenticated):
        await node.renew()


async def test_a_node_whose_clock_is_off_is_told_so(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    later = datetime.datetime.now(datetime.UTC) + 24 * HOUR
    authority.init(directory, ["127.0.0.1"], later)  # as it looks to a node whose clock is a day behind
    async with a_cluster(tmp_path) as cluster:
        cluster.clock.ahead = 24 * HOUR
        parted = wire.parted(f"ncj_{'A' * 43}.{authority.Authority(directory).fingerprint}")
        assert parted is not None
        ask = wire.Join(token=parted[0], node_id="", node_name="n", csr_pem="")
        now_s = datetime.datetime.now(datetime.UTC).timestamp
        with pytest.raises(Unavailable, match="clock") as caught:
            await asyncio.to_thread(enrolment.join, cluster.url, ask, parted[1], now_s)
        assert codes(caught.value) == ["clock.off"]


async def test_without_a_certificate_nothing_opens_over_the_network(cluster: Cluster) -> None:
    secret = (cluster.directory / "data" / "agent.secret").read_text().strip()
    node = await cluster.node(1)
    with pytest.raises(InvalidStatus) as caught:
        await dialer(cluster.url, secret, lambda: credentials.pinned(cluster.ca.read_text()))()
    assert b"certificate.missing" in (caught.value.response.body or b"")
    async with cluster.http() as http:
        headers = {"authorization": f"Bearer {secret}"}
        assert (await http.get("/agent/v1/images/" + "0" * 64, headers=headers)).status_code == 401
        assert (await http.post(wire.RENEW_PATH, content=b"{}")).status_code == 401
        assert (await http.post(wire.JOIN_PATH, content=b"x" * (wire.MAX_ASK_BYTES + 1))).status_code == 413
    async with httpx2.AsyncClient(base_url=cluster.url, verify=node.badge.context(), trust_env=False) as joined:
        assert (await joined.get("/agent/v1/images/" + "0" * 64)).status_code == 404  # it may ask; there is none
        assert (await joined.get("/api/v1/nodes")).status_code == 401  # a node is no user
    await (await node.line()).close()


async def test_on_this_machines_socket_the_secret_speaks_for_no_node_that_has_joined(cluster: Cluster) -> None:
    door = ByCertificate(cluster.house.records.store, cluster.clock, "the secret")
    node, local = await cluster.node(1), Node(cluster, 2, "local")
    await door.start()
    secret = {"type": "websocket", "headers": [(b"authorization", b"Bearer the secret")]}
    assert door.at_door(HTTPConnection(secret)) is None
    door.at_hello(None, msgspec.json.decode(local.hello(), type=Hello))
    with pytest.raises(Forbidden) as caught:
        door.at_hello(None, msgspec.json.decode(node.hello(), type=Hello))
    assert codes(caught.value) == ["hello.certificate"]
    for headers in ([], [(b"authorization", b"Bearer another")]):
        with pytest.raises(Unauthenticated):
            door.at_door(HTTPConnection({"type": "websocket", "headers": headers, "client": None}))


async def test_a_certificate_of_another_ca_ends_in_the_handshake_and_is_told(cluster: Cluster, tmp_path: Path) -> None:
    node = await cluster.node(1)
    async with a_cluster(tmp_path / "elsewhere") as elsewhere:
        stranger = await elsewhere.node(1)
    theirs = (stranger.state / "identity" / "node.pem").read_bytes()  # what it trusts stays ours
    (node.state / "identity" / "node.pem").write_bytes(theirs)
    assert await told_in_the_handshake(node) == ["certificate.ca"]


async def told_in_the_handshake(node: Node) -> list[str]:
    """What the server logs when the node dials and its certificate is of no CA that the server trusts."""
    with structlog.testing.capture_logs() as logged, pytest.raises(WebSocketException) as caught:
        await (await node.dial()).recv()
    reason = credentials.of_tls(caught.value)
    assert reason is not None
    assert "CA" in reason.remedy
    assert all(one["remedy"] for one in logged if "code" in one)
    return [one["code"] for one in logged if "code" in one]


async def test_plaintext_is_no_answer(cluster: Cluster) -> None:
    port = int(cluster.url.rpartition(":")[2])

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(b"GET /agent/v1/line HTTP/1.1\r\nHost: x\r\n\r\n")
            return plain.recv(100)

    assert b"HTTP" not in await asyncio.to_thread(ask)


async def test_refusals_are_in_the_log_with_code_and_name(cluster: Cluster) -> None:
    token = await cluster.token()
    with structlog.testing.capture_logs() as logged:
        node = Node(cluster, 1, "node-1")
        await refused(node, token, csr_pem=_tampered(node, token.partition(".")[0]))
        await node.join(token)
        await refused(Node(cluster, 2, "node-2"), token)
        await closed_with(await node.dial(node.hello(name="node-9")))
    told = [(one["code"], one["node"]) for one in logged if one["log_level"] == "warning" and "code" in one]
    assert told == [("csr.signature", "node-1"), ("join_token.used", "node-2"), ("hello.name", "node-9")]
    assert token.partition(".")[0] not in str(logged)


async def test_the_ca_changes_with_old_and_new_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    now = datetime.datetime.now(datetime.UTC)
    async with a_cluster(tmp_path) as cluster:
        node = await cluster.node(1)
    authority.add_next(folder, now)
    with pytest.raises(Conflict):
        authority.add_next(folder, now)
    async with a_cluster(tmp_path) as cluster:
        node.cluster = cluster
        await node.renew()
        late = await cluster.node(2)
    authority.switch(folder, now)
    async with a_cluster(tmp_path) as cluster:  # its own certificate is of the new CA, the node's of the old one
        node.cluster = late.cluster = cluster
        await (await node.line()).close()
        await node.renew()
    authority.drop_old(folder)
    async with a_cluster(tmp_path) as cluster:
        node.cluster = late.cluster = cluster
        await (await node.line()).close()
        assert await told_in_the_handshake(late) == ["certificate.ca"]  # did not renew in time


async def test_past_tokens_and_revoked_nodes_are_forgotten_once_nothing_of_them_can_count(cluster: Cluster) -> None:
    store = cluster.house.records.store
    node, _ = await cluster.node(1), await cluster.token()
    write = await ledger.revocation(store, node.id, "gone")
    assert write is not None
    await cluster.house.records.commit(write)
    now = cluster.clock.wall()
    assert await ledger.sweep(store, now) == 0
    assert await ledger.sweep(store, now + 2 * HOUR) == 1
    assert await ledger.find(store, ledger.IDENTITIES + node.id, NodeIdentity) == (None, 0)
    assert await ledger.sweep(store, now + ledger.TOKENS_KEPT + 2 * HOUR) == 2
