"""Image files brought to a node: from the server or another node's door, compared, resumed, kept; doors stay shut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import uvicorn
from fastapi import FastAPI

from novacron.agent.credentials import by_secret
from novacron.agent.image_door import MAX_VISITORS, ImageDoor
from novacron.agent.images import Images
from novacron.agent.sources import Server
from novacron.agent.storage.depot import Depot
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.tool import Tools
from novacron.clock import SystemClock
from novacron.control.doorman import BySecret
from novacron.control.images.door import router
from novacron.control.problems import handle_errors
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import NoRoom, NotFound, Unavailable
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.pool import PoolSpec
from novacron.wire import ticket
from novacron.wire.storage import DOOR_PATH, IMAGES_PATH, ImageDrop, ImageFetch, ImagesHeld, ImageSource

pytestmark = pytest.mark.anyio

SECRET = "correct horse battery staple of agents"
MIB = 1 << 20
FILE = random.Random(17).randbytes(3 * MIB + 17)
DIGEST = hashlib.sha256(FILE).hexdigest()
POOL_ID = "0190b36e-0000-7000-8000-00000000bbbb"
FROM_SERVER = (ImageSource(),)


class Node:
    """A node's own part in this: its pools, its verbs, its door."""

    def __init__(self, root: Path, server: str, secret: str = SECRET) -> None:
        self.root = root
        for name in ("own", "own/images", "local"):
            (root / name).mkdir(parents=True)
        tools = Tools(None)
        depot = Depot(
            DirectoryPool(root / "own", tools=tools),
            lambda spec: DirectoryPool(Path(spec.options["path"]), tools=tools),
        )
        self.server = Server(lambda: (server,), by_secret(secret, None), lambda: int(time.time()))
        self.images = Images(depot, root / "fetching", self.server)
        self.door = ImageDoor(self.images.file, ticket.key_of(secret), self.server.now_s)
        self.pool = PoolSpec(id=POOL_ID, options={"path": str(root / "local")})

    def fetch(self, *sources: ImageSource, digest: str = DIGEST, size: int = len(FILE)) -> ImageFetch:
        return ImageFetch(pool=self.pool, digest=digest, size_bytes=size, sources=sources or FROM_SERVER)

    @property
    def kept(self) -> dict[str, bytes]:
        """What its pool holds, and nothing half-made beside it."""
        directory = self.root / "local" / "images"
        return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.is_dir() else {}

    @property
    def parts(self) -> list[str]:
        directory = self.root / "fetching"
        return [path.name for path in directory.iterdir()] if directory.is_dir() else []

    @contextlib.asynccontextmanager
    async def open_door(self) -> AsyncIterator[ImageSource]:
        async with self.door.opened("127.0.0.1", 0, self.root / "door.pem"):
            yield ImageSource(door=self.door.address, fingerprint=self.door.fingerprint)


class Control:
    """The server's own image door on a real port or socket."""

    def __init__(self, address: str, records: Records, pool: Path) -> None:
        self.address = address
        self.records = records
        self.pool = pool

    async def has(self, content: bytes, state: ImageState = ImageState.READY) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.pool / "images" / digest).write_bytes(content)
        now = SystemClock().wall()
        file = ImageFile(role=FileRole.DISK, digest=digest, size_bytes=len(content))
        made = Image(
            id=self.records.new_id(), name=f"i-{digest[:8]}", state=state, created_at=now, updated_at=now, files=(file,)
        )
        await self.records.create(IMAGES, made)
        return digest


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@contextlib.asynccontextmanager
async def a_control(directory: Path, listen: socket.socket) -> AsyncIterator[Control]:
    (directory / "images").mkdir(parents=True)
    store = await SqliteStore.open(directory / "store.db", durable=False)
    records = Records(store, SystemClock(), random.Random(3))
    await records.start()
    app = FastAPI(openapi_url=None)
    handle_errors(app)
    app.router.routes.extend(router(records, directory, BySecret(SECRET)).routes)
    server = _Server(uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve(sockets=[listen]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        name = listen.getsockname()
        address = f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
        yield Control(address, records, directory)
    finally:
        server.should_exit = True
        await running
        await records.stop()
        await store.close()


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    listen = socket.socket()
    listen.bind(("127.0.0.1", 0))
    async with a_control(tmp_path / "control", listen) as made:
        yield made


@pytest.fixture
def node(tmp_path: Path, control: Control) -> Node:
    return Node(tmp_path / "node", control.address)


@contextlib.asynccontextmanager
async def cutting(address: str, *after: int) -> AsyncIterator[tuple[str, list[int]]]:
    """A proxy that cuts its nth connection after so many bytes of answer (the rest are let through whole)."""
    host, _, port = address.rpartition(":")
    passed: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = after[len(passed)] if len(passed) < len(after) else 1 << 60
        place = len(passed)
        passed.append(0)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))

        async def forth() -> None:
            with contextlib.suppress(OSError):
                while piece := await reader.read(65536):
                    far_writer.write(piece)
                    await far_writer.drain()

        asking = asyncio.create_task(forth())
        with contextlib.suppress(OSError):
            while passed[place] < limit and (piece := await far_reader.read(min(65536, limit - passed[place]))):
                passed[place] += len(piece)
                writer.write(piece)
                await writer.drain()
        asking.cancel()
        writer.transport.abort()
        far_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", passed
    finally:
        server.close()


# -- from the server -------------------------------------------------------------------------------------------------


async def test_it_comes_from_the_server_once(node: Node, control: Control) -> None:
    await control.has(FILE)
    await node.images.fetch(node.fetch())
    assert (node.kept, node.parts) == ({DIGEST: FILE}, [])
    assert (await node.images.held(ImagesHeld(pool=node.pool))).digests == (DIGEST,)
    (control.pool / "images" / DIGEST).unlink()
    await node.images.fetch(node.fetch())  # it is there: nobody is asked


async def test_it_comes_over_a_unix_socket(tmp_path: Path) -> None:
    listen = socket.socket(socket.AF_UNIX)
    listen.bind(str(tmp_path / "s"))
    async with a_control(tmp_path / "control", listen) as control:
        node = Node(tmp_path / "node", control.address)
        await control.has(FILE)
        await node.images.fetch(node.fetch())
        assert node.kept == {DIGEST: FILE}


async def test_only_who_knows_the_secret_gets_it(tmp_path: Path, control: Control) -> None:
    await control.has(FILE)
    node = Node(tmp_path / "stranger", control.address, "something else")
    with pytest.raises(Unavailable, match="could not be fetched") as refused:
        await node.images.fetch(node.fetch())
    assert "401" in refused.value.reasons[0].message
    assert (node.kept, node.parts) == ({}, [DIGEST])


async def test_files_of_images_that_are_not_ready_are_not_given(node: Node, control: Control) -> None:
    await control.has(FILE, ImageState.PENDING)
    with pytest.raises(NotFound):
        await node.images.fetch(node.fetch())


async def test_an_unknown_file(node: Node, control: Control) -> None:
    stray = hashlib.sha256(b"stray").hexdigest()
    (control.pool / "images" / stray).write_bytes(b"stray")  # no record has it
    with pytest.raises(NotFound, match="nobody has"):
        await node.images.fetch(node.fetch(digest=stray, size=5))


async def test_a_broken_line_goes_on_where_it_ended(node: Node, control: Control, tmp_path: Path) -> None:
    await control.has(FILE)
    async with cutting(control.address.removeprefix("http://"), MIB, MIB) as (proxy, passed):
        patient = Node(tmp_path / "patient", f"http://{proxy}")
        await patient.images.fetch(patient.fetch())
    assert patient.kept == {DIGEST: FILE}
    assert len(passed) == 3
    assert sum(passed) < len(FILE) + 3 * 1024  # no byte but the heads came twice


async def test_what_a_dead_agent_had_is_gone_on_with(node: Node, control: Control, tmp_path: Path) -> None:
    await control.has(FILE)
    (node.root / "fetching").mkdir()
    (node.root / "fetching" / DIGEST).write_bytes(FILE[: 2 * MIB])
    async with cutting(control.address.removeprefix("http://")) as (proxy, passed):
        node.images._server = msgspec.structs.replace(node.server, addresses=lambda: (f"http://{proxy}",))
        await node.images.fetch(node.fetch())
    assert node.kept == {DIGEST: FILE}
    assert sum(passed) < MIB + 1024


@pytest.mark.parametrize("left", [b"x" * MIB, b"x" * len(FILE), b"x" * (len(FILE) + 5)], ids=["less", "same", "more"])
async def test_rubbish_left_behind_is_found_out(node: Node, control: Control, left: bytes) -> None:
    await control.has(FILE)
    (node.root / "fetching").mkdir()
    (node.root / "fetching" / DIGEST).write_bytes(left)
    try:
        await node.images.fetch(node.fetch())
    except Unavailable:  # thrown away: the next attempt begins anew
        assert (node.kept, node.parts) == ({}, [])
        await node.images.fetch(node.fetch())
    assert (node.kept, node.parts) == ({DIGEST: FILE}, [])


@pytest.mark.parametrize("wrong", [FILE[:-1] + b"\0", FILE + b"x", FILE[:-1]], ids=["other", "more", "less"])
async def test_another_file_is_never_kept(node: Node, control: Control, wrong: bytes) -> None:
    await control.has(FILE)
    (control.pool / "images" / DIGEST).write_bytes(wrong)
    with pytest.raises(Unavailable):
        await node.images.fetch(node.fetch())
    assert node.kept == {}


async def test_two_fetches_of_one_file_share_one(node: Node, control: Control) -> None:
    await control.has(FILE)
    async with cutting(control.address.removeprefix("http://")) as (proxy, passed):
        node.images._server = msgspec.structs.replace(node.server, addresses=lambda: (f"http://{proxy}",))
        await asyncio.gather(*(node.images.fetch(node.fetch()) for _ in range(5)))
    assert (node.kept, len(passed)) == ({DIGEST: FILE}, 1)


async def test_given_up_it_leaves_a_part_and_the_next_goes_on(node: Node, control: Control) -> None:
    await control.has(FILE)
    fetching = asyncio.create_task(node.images.fetch(node.fetch()))
    async with asyncio.timeout(10):
        while not node.parts:
            await asyncio.sleep(0)
    fetching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await fetching
    await node.images.fetch(node.fetch())
    assert (node.kept, node.parts) == ({DIGEST: FILE}, [])


async def test_a_file_this_node_has_in_another_pool_is_not_asked_for(node: Node) -> None:
    (node.root / "own" / "images" / DIGEST).write_bytes(FILE)
    await node.images.fetch(node.fetch(ImageSource(door="127.0.0.1:1", fingerprint="0" * 64)))
    assert node.kept == {DIGEST: FILE}
    assert (node.root / "own" / "images" / DIGEST).read_bytes() == FILE


async def test_more_than_there_is_room_for(node: Node, control: Control) -> None:
    await control.has(FILE)
    with pytest.raises(NoRoom):
        await node.images.fetch(node.fetch(size=1 << 60))


async def test_dropped_and_fetched_again(node: Node, control: Control) -> None:
    await control.has(FILE)
    await node.images.fetch(node.fetch())
    for _ in range(2):
        await node.images.drop(ImageDrop(pool=node.pool, digest=DIGEST))
    assert node.kept == {}
    await node.images.fetch(node.fetch())
    assert node.kept == {DIGEST: FILE}


async def test_parts_nobody_went_on_with_are_swept(node: Node) -> None:
    (node.root / "fetching").mkdir()
    for name in ("old", "new"):
        (node.root / "fetching" / name).touch()
    os.utime(node.root / "fetching" / "old", (1, 1))
    node.images.sweep()
    assert node.parts == ["new"]


# -- from another node -----------------------------------------------------------------------------------------------


@pytest.fixture
async def holder(tmp_path: Path, control: Control) -> Node:
    """A node that has fetched the file."""
    made = Node(tmp_path / "holder", control.address)
    await control.has(FILE)
    await made.images.fetch(made.fetch())
    (control.pool / "images" / DIGEST).unlink()  # the server has it no more
    return made


async def test_it_comes_from_another_node(node: Node, holder: Node) -> None:
    async with holder.open_door() as door:
        await node.images.fetch(node.fetch(door))
    assert node.kept == {DIGEST: FILE}
    assert holder.door.address == ""


async def test_a_broken_line_to_a_door_goes_on_too(node: Node, holder: Node) -> None:
    async with holder.open_door() as door, cutting(door.door, 2 * MIB) as (proxy, passed):
        await node.images.fetch(node.fetch(msgspec.structs.replace(door, door=proxy)))
    assert node.kept == {DIGEST: FILE}
    assert len(passed) == 2
    assert sum(passed) < len(FILE) + 256 * 1024


async def test_the_next_source_is_asked_when_one_fails(node: Node, holder: Node, control: Control) -> None:
    dead = ImageSource(door="127.0.0.1:1", fingerprint="0" * 64)
    async with holder.open_door() as door:
        await node.images.fetch(node.fetch(dead, ImageSource(), door))
    assert node.kept == {DIGEST: FILE}


async def test_the_certificate_and_the_door_stay_through_a_restart(holder: Node) -> None:
    async with holder.open_door() as before:
        pass
    async with holder.open_door() as after:
        assert after.fingerprint == before.fingerprint
    assert (holder.root / "door.pem").stat().st_mode & 0o777 == 0o600


async def test_a_door_with_another_certificate_is_not_spoken_to(node: Node, holder: Node) -> None:
    async with holder.open_door() as door:
        with pytest.raises(Unavailable) as refused:
            await node.images.fetch(node.fetch(msgspec.structs.replace(door, fingerprint="0" * 64)))
    assert "another certificate" in refused.value.reasons[0].message
    assert node.kept == {}


async def test_a_node_with_another_secret_gets_nothing(tmp_path: Path, holder: Node) -> None:
    stranger = Node(tmp_path / "stranger", "unix:/nowhere", "another secret")
    async with holder.open_door() as door:
        with pytest.raises(Unavailable):
            await stranger.images.fetch(stranger.fetch(door))
    assert stranger.kept == {}


async def knock(door: ImageSource, raw: bytes) -> bytes:
    """What the door says to these bytes."""
    host, _, port = door.door.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(raw)
        await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    except OSError:
        return b""
    finally:
        writer.transport.abort()


def request(path: str, authorization: str = "", method: str = "GET", extra: str = "") -> bytes:
    shown = f"Authorization: {authorization}\r\n" if authorization else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{shown}{extra}\r\n".encode()


def a_ticket(digest: str = DIGEST, secret: str = SECRET, at_s: int = 0) -> str:
    return ticket.issue(ticket.key_of(secret), digest, int(time.time()) + at_s)


CASES = [
    (request(DOOR_PATH + DIGEST), 401),
    (request(DOOR_PATH + DIGEST, f"Bearer {SECRET}"), 401),
    (request(DOOR_PATH + DIGEST, a_ticket("0" * 64)), 401),  # for another file
    (request(DOOR_PATH + DIGEST, a_ticket(secret="x")), 401),
    (request(DOOR_PATH + DIGEST, a_ticket(at_s=-400)), 401),  # expired
    (request(DOOR_PATH + DIGEST, a_ticket(at_s=86400)), 401),  # lasts longer than one may
    (request(DOOR_PATH + DIGEST, "NovaCron-Ticket 99999999999999999999.x"), 401),
    (request(DOOR_PATH + DIGEST, "NovaCron-Ticket ."), 401),
    (request(DOOR_PATH + "0" * 64, a_ticket("0" * 64)), 404),
    (request(DOOR_PATH + "../../etc/passwd", a_ticket()), 404),
    (request(DOOR_PATH + DIGEST + "/..", a_ticket()), 404),
    (request(IMAGES_PATH + DIGEST, a_ticket()), 404),
    (request("/", a_ticket()), 404),
    (request(DOOR_PATH + DIGEST, a_ticket(), method="POST"), 404),
    (request(DOOR_PATH + DIGEST, a_ticket(), extra="Range: bytes=99999999999-\r\n"), 416),
    (request(DOOR_PATH + DIGEST, a_ticket(), extra=f"Range: bytes={len(FILE) - 1}-\r\n"), 206),
    (request(DOOR_PATH + DIGEST, a_ticket(), extra="Range: bytes=-1\r\n"), 200),
    (request(DOOR_PATH + DIGEST, a_ticket()), 200),
]


@pytest.mark.parametrize(("raw", "status"), CASES, ids=map(str, range(len(CASES))))
async def test_what_the_door_answers(holder: Node, raw: bytes, status: int) -> None:
    async with holder.open_door() as door:
        said = await knock(door, raw)
    assert said.startswith(f"HTTP/1.1 {status} ".encode()), said[:200]
    content = said.partition(b"\r\n\r\n")[2]
    assert content == {206: FILE[-1:], 200: FILE}.get(status, b"")


@pytest.mark.parametrize(
    "raw", [b"\x00" * 100, b"GET " + b"a" * 20_000, b"HELO\r\n\r\n", request("/x")[:-2] + b"A" * 20_000], ids="abcd"
)
async def test_rubbish_at_the_door_is_shown_out(holder: Node, raw: bytes) -> None:
    async with holder.open_door() as door:
        assert FILE[:100] not in await knock(door, raw)
        assert (await knock(door, request(DOOR_PATH + DIGEST, a_ticket()))).endswith(FILE[-100:])


async def test_plain_text_at_the_door(holder: Node) -> None:
    async with holder.open_door() as door:
        host, _, port = door.door.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request(DOOR_PATH + DIGEST, a_ticket()))
        async with asyncio.timeout(10):
            assert b"HTTP" not in await reader.read()
        writer.transport.abort()


async def test_so_many_visitors_and_no_more(holder: Node) -> None:
    async with holder.open_door() as door:
        host, _, port = door.door.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        waiting = [await asyncio.open_connection(host, int(port), ssl=context) for _ in range(MAX_VISITORS)]
        async with asyncio.timeout(10):
            while len(holder.door._visits) < MAX_VISITORS:
                await asyncio.sleep(0.005)
        assert await knock(door, request(DOOR_PATH + DIGEST, a_ticket())) == b""
        for _, writer in waiting:
            writer.transport.abort()


async def test_the_default_pools_files_are_not_given(holder: Node) -> None:
    """What lies in the pool that is shared with the server may belong to images that are not ready."""
    other = os.urandom(1000)
    digest = hashlib.sha256(other).hexdigest()
    (holder.root / "own" / "images" / digest).write_bytes(other)
    async with holder.open_door() as door:
        said = await knock(door, request(DOOR_PATH + digest, a_ticket(digest)))
    assert said.startswith(b"HTTP/1.1 404 ")
