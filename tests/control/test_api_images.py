"""Images through the API: what is taken, what is refused, and that records and files never disagree."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from novacron.clock import SystemClock
from novacron.config import ServerConfig
from novacron.control.access.guard import Guard
from novacron.control.access.service import Access
from novacron.control.images.routes import router
from novacron.control.images.service import ImageService
from novacron.control.images.shelf import Arrived, Shelf
from novacron.control.images.view import ImageView
from novacron.control.problems import handle_errors
from novacron.control.room import Room
from novacron.control.store.kinds import IMAGES, VMS
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import Unavailable
from novacron.model.image import FileRole
from novacron.model.machine import Disk
from novacron.model.vm import Desired, Vm, VmSpec
from novacron.wire.rest.images import Image

pytestmark = pytest.mark.anyio

MIB = 1 << 20
KERNEL = b"".join(
    [bytes(0x1F1), b"\x01\0\0", struct.pack("<I", 64), bytes(6), b"\x55\xaa", bytes(2), b"HdrS", bytes(4096 - 0x206)]
)
INITRD = b"070701" + bytes(100)
RAW = b"\xeb\x63" + os.urandom(MIB - 2)
QCOW2_WITH_BACKING = b"QFI\xfb" + struct.pack(">IQI", 3, 104, 11) + bytes(84) + b"/etc/passwd".ljust(MIB, b"\0")
PATH = "/api/v1/images"
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class House:
    """An API that serves images alone, and the pool they lie in."""

    app: FastAPI
    http: httpx2.AsyncClient
    records: Records
    pool: Path
    service: ImageService
    token: str

    def files(self) -> set[str]:
        """Digests on the shelf."""
        return {path.name for path in (self.pool / "images").iterdir()}

    def incoming(self) -> list[str]:
        path = self.pool / "incoming"
        return sorted(one.name for one in path.iterdir()) if path.exists() else []

    async def make(self, name: str = "tiny", **more: Any) -> str:
        answer = await self.http.post(PATH, json={"name": name, **more})
        assert answer.status_code == 201, answer.text
        image_id: str = answer.json()["id"]
        return image_id

    async def put(self, ref: str, role: str, content: Any, **headers: str) -> httpx2.Response:
        kinds = {"content-type": "application/octet-stream", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await self.http.put(f"{PATH}/{ref}/files/{role}", content=content, headers=kinds)

    async def filled(self, name: str, content: bytes = RAW) -> str:
        """A ready image with one disk."""
        image_id = await self.make(name)
        assert (await self.put(image_id, "disk", content)).status_code == 200
        assert (await self.http.post(f"{PATH}/{image_id}/seal")).status_code == 200
        return image_id


@contextlib.asynccontextmanager
async def a_house(directory: Path, pool: Path) -> AsyncIterator[House]:
    """A server in miniature: the production parts that a request for images meets."""
    (pool / "images").mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        store = await SqliteStore.open(directory / "store.db", durable=False)
        stack.push_async_callback(store.close)
        records = Records(store, clock, random.Random(7))
        await records.start()
        stack.push_async_callback(records.stop)
        access = Access(store)
        token = await access.start(directory) or ""
        service = ImageService(records, Room(records, ServerConfig(data_dir=pool, pool_dir=pool)), clock, pool)
        app = FastAPI(openapi_url=None)
        app.state.records, app.state.clock = records, clock
        handle_errors(app)
        app.router.routes.extend(router(records, service, ImageView(records)).routes)
        app.add_middleware(Guard, access=access, open_paths=(), browsable=())
        http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://novacron.test",
            headers={"authorization": f"Bearer {token}"},
        )
        await stack.enter_async_context(http)
        yield House(app, http, records, pool, service, token)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(tmp_path, tmp_path / "pool") as made:
        yield made


async def a_vm(house: House, name: str, *, image_id: str = "", disks: tuple[Disk, ...] = ()) -> None:
    spec = VmSpec(image_id=image_id or house.records.new_id(), disks=disks)
    vm = Vm(id=house.records.new_id(), name=name, spec=spec, desired=Desired.STOPPED, created_at=NOW, updated_at=NOW)
    await house.records.create(VMS, vm)


def problem_of(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem an answer carries."""
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    assert (answer.headers["content-type"], told["code"]) == ("application/problem+json", code)
    return told


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def code_of(answer: httpx2.Response) -> str:
    code: str = problem_of(answer, 422, "image_refused")["reasons"][0]["code"]
    return code


# -- the way of an image ---------------------------------------------------------------------------------------------


async def test_from_nothing_to_ready(house: House) -> None:
    made = await house.http.post(PATH, json={"name": "debian", "labels": {"os": "linux"}, "cmdline": "console=ttyS0"})
    assert made.status_code == 201
    image = Image.model_validate(made.json())
    assert (image.name, image.state, image.files, image.cmdline) == ("debian", "pending", [], "console=ttyS0")
    assert made.headers["location"] == f"{PATH}/{image.id}"
    assert made.headers["etag"] == f'"{image.revision}"'
    for role, content in (("kernel", KERNEL), ("initrd", INITRD), ("disk", RAW)):
        put = await house.put("debian", role, content, x_content_sha256=sha(content).upper())
        assert put.status_code == 200, put.text
    ready = Image.model_validate((await house.http.post(f"{PATH}/debian/seal")).json())
    assert ready.state == "ready"
    assert {(file.role.value, file.digest, file.size_bytes) for file in ready.files} == {
        ("kernel", sha(KERNEL), len(KERNEL)),
        ("initrd", sha(INITRD), len(INITRD)),
        ("disk", sha(RAW), MIB),
    }
    disk = next(file for file in ready.files if file.role is FileRole.DISK)
    assert (disk.format, disk.virtual_size_bytes) == ("raw", MIB)
    assert (await house.http.get(f"{PATH}/{image.id}")).json() == ready.model_dump(mode="json")
    for content in (KERNEL, INITRD, RAW):
        path = house.pool / "images" / sha(content)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o444
    assert house.incoming() == []


async def test_a_long_stream_of_small_pieces(house: House) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(RAW), 5000):
            yield RAW[start : start + 5000]

    image_id = await house.make()
    assert (await house.put(image_id, "disk", pieces())).status_code == 200
    assert house.files() == {sha(RAW)}


async def test_lists_filter_and_page(house: House) -> None:
    for number in range(5):
        await house.make(f"pending-{number}", labels={"parity": "odd" if number % 2 else "even"})
    await house.filled("ready")
    page = (await house.http.get(PATH, params={"state": "pending", "limit": 2, "label": "parity=even"})).json()
    assert [one["name"] for one in page["items"]] == ["pending-0", "pending-2"]
    rest = (await house.http.get(PATH, params={"cursor": page["next_cursor"], "label": "parity=even"})).json()
    assert ([one["name"] for one in rest["items"]], rest["next_cursor"]) == (["pending-4"], None)
    assert [one["name"] for one in (await house.http.get(PATH, params={"state": "ready"})).json()["items"]] == ["ready"]
    assert (await house.http.get(PATH, params={"name": "nobody"})).json()["items"] == []


async def test_words_can_be_changed_and_files_cannot(house: House) -> None:
    image_id = await house.filled("a")
    changed = await house.http.patch(f"{PATH}/a", json={"name": "b", "labels": {"x": "y"}})
    assert (changed.json()["name"], changed.json()["labels"]) == ("b", {"x": "y"})
    stale = await house.http.patch(f"{PATH}/b", json={"name": "c"}, headers={"if-match": '"1"'})
    problem_of(stale, 412, "precondition_failed")
    problem_of(await house.put(image_id, "disk", RAW), 409, "state_conflict")
    problem_of(await house.http.patch(f"{PATH}/b", json={"state": "pending"}), 422, "invalid_input")


async def test_a_file_of_a_pending_image_can_be_replaced(house: House) -> None:
    image_id = await house.make()
    other = bytes(512)
    for content in (RAW, RAW, other):
        answer = await house.put(image_id, "disk", content)
        assert [file["digest"] for file in answer.json()["files"]] == [sha(content)]
    assert house.files() == {sha(other)}
    assert house.incoming() == []


async def test_sealing_again_changes_nothing(house: House) -> None:
    image_id = await house.filled("a")
    before = (await house.http.get(f"{PATH}/a")).json()
    assert (await house.http.post(f"{PATH}/{image_id}/seal")).json() == before


@pytest.mark.parametrize(
    ("words", "files", "lacks"),
    [
        ({}, (), ["image.not_bootable"]),
        ({}, (("initrd", INITRD),), ["image.not_bootable", "image.initrd_alone"]),
        ({"cmdline": "quiet"}, (("disk", RAW),), ["image.cmdline_alone"]),
    ],
)
async def test_what_could_not_boot_is_not_sealed(
    house: House, words: dict[str, str], files: tuple[tuple[str, bytes], ...], lacks: list[str]
) -> None:
    image_id = await house.make(**words)
    for role, content in files:
        assert (await house.put(image_id, role, content)).status_code == 200
    problem = problem_of(await house.http.post(f"{PATH}/{image_id}/seal"), 409, "conflict")
    assert [reason["code"] for reason in problem["reasons"]] == lacks


async def test_asked_twice_with_one_key_there_is_one_image(house: House) -> None:
    headers = {"idempotency-key": "k1"}
    answers = [await house.http.post(PATH, json={"name": "a"}, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    problem_of(await house.http.post(PATH, json={"name": "a"}), 409, "name_taken")


# -- what is refused -------------------------------------------------------------------------------------------------


async def test_a_header_that_points_at_another_file_is_refused_and_leaves_nothing(house: House) -> None:
    image_id = await house.make()
    assert code_of(await house.put(image_id, "disk", QCOW2_WITH_BACKING)) == "image.backing_file"
    assert (await house.http.get(f"{PATH}/{image_id}")).json()["files"] == []
    assert (house.files(), house.incoming()) == (set(), [])


@pytest.mark.parametrize(
    ("role", "content", "code"),
    [
        ("disk", b"", "image.sectors"),
        ("disk", b"KDMV".ljust(512, b"\0"), "image.vmdk"),
        ("kernel", RAW, "image.kernel"),
        ("initrd", KERNEL, "image.initrd"),
        ("firmware", KERNEL, "image.firmware"),
    ],
)
async def test_a_mix_up_is_refused(house: House, role: str, content: bytes, code: str) -> None:
    image_id = await house.make()
    assert code_of(await house.put(image_id, role, content)) == code
    assert (house.files(), house.incoming()) == (set(), [])


async def test_another_digest_than_promised_is_refused(house: House) -> None:
    image_id = await house.make()
    assert code_of(await house.put(image_id, "disk", RAW, x_content_sha256=sha(b"other"))) == "image.digest"
    assert (house.files(), house.incoming()) == (set(), [])
    problem_of(await house.put(image_id, "disk", RAW, x_content_sha256="abc"), 422, "invalid_input")


async def test_what_is_too_large_is_refused_before_and_while_it_comes(house: House) -> None:
    image_id = await house.make()
    announced = await house.put(image_id, "firmware", bytes((16 << 20) + 1))
    problem_of(announced, 413, "too_large")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    problem_of(await house.put(image_id, "firmware", endless()), 413, "too_large")
    assert (house.files(), house.incoming()) == (set(), [])


async def test_more_than_the_pool_has_room_for_is_refused_at_once(house: House) -> None:
    image_id = await house.make()

    async def never() -> AsyncIterator[bytes]:
        pytest.fail("asked for a body that has no room")
        yield b""  # type: ignore[unreachable]

    answer = await house.put(image_id, "disk", never(), content_length=str(1 << 40))
    problem_of(answer, 507, "no_room")


async def test_a_form_is_not_a_file(house: House) -> None:
    image_id = await house.make()
    answer = await house.http.put(f"{PATH}/{image_id}/files/disk", files={"file": RAW})
    assert problem_of(answer, 422, "invalid_input")["reasons"][0]["subject"] == "content-type"


@pytest.mark.parametrize("name", ["a,process=x", "a\n", "../a", "-a", "a\0b", "A", "a" * 10_000, ""])
async def test_hostile_names(house: House, name: str) -> None:
    problem_of(await house.http.post(PATH, json={"name": name}), 422, "invalid_input")


@pytest.mark.parametrize("ref", ["nobody", "0190b36e-0000-7000-8000-00000000aaaa"])
async def test_unknown_images(house: House, ref: str) -> None:
    answers = [
        await house.http.get(f"{PATH}/{ref}"),
        await house.http.patch(f"{PATH}/{ref}", json={"name": "x"}),
        await house.put(ref, "disk", RAW),
        await house.http.post(f"{PATH}/{ref}/seal"),
        await house.http.delete(f"{PATH}/{ref}"),
    ]
    for answer in answers:
        problem_of(answer, 404, "not_found")
    problem_of(await house.put(ref, "floppy", RAW), 422, "invalid_input")
    assert house.incoming() == []


# -- deleting --------------------------------------------------------------------------------------------------------


async def test_a_deleted_image_takes_its_file_along(house: House) -> None:
    image_id = await house.filled("a")
    assert (await house.http.delete(f"{PATH}/{image_id}")).status_code == 204
    problem_of(await house.http.get(f"{PATH}/a"), 404, "not_found")
    assert (house.files(), house.incoming()) == (set(), [])


async def test_bytes_that_another_image_has_stay(house: House) -> None:
    one, other = await house.filled("one"), await house.filled("other")
    await house.http.delete(f"{PATH}/{one}")
    assert house.files() == {sha(RAW)}
    await house.http.delete(f"{PATH}/{other}")
    assert house.files() == set()


async def test_an_image_that_vms_use_is_kept_and_the_vms_are_named(house: House) -> None:
    image_id = await house.filled("a")
    await a_vm(house, "web-1", image_id=image_id)
    problem = problem_of(await house.http.delete(f"{PATH}/{image_id}"), 409, "conflict")
    assert [(reason["code"], reason["subject"]) for reason in problem["reasons"]] == [("image.in_use", "web-1")]
    assert (house.files(), house.incoming()) == ({sha(RAW)}, [])


async def test_bytes_that_a_volume_stands_on_stay(house: House) -> None:
    image_id = await house.filled("a")
    disk = Disk(volume_id=house.records.new_id(), size_bytes=MIB, backing_digest=sha(RAW))
    await a_vm(house, "web-1", disks=(disk,))
    assert (await house.http.delete(f"{PATH}/{image_id}")).status_code == 204
    assert house.files() == {sha(RAW)}


async def test_of_two_images_with_the_same_bytes_neither_loses_them_to_the_other(house: House) -> None:
    for number in range(15):
        leaving = await house.filled(f"leaving-{number}")
        coming = await house.make(f"coming-{number}")
        put, gone = await asyncio.gather(
            house.put(coming, "disk", RAW), house.http.delete(f"{PATH}/{leaving}"), return_exceptions=False
        )
        assert (put.status_code, gone.status_code) == (200, 204)
        assert house.files() == {sha(RAW)}
        await house.http.delete(f"{PATH}/{coming}")
        assert house.files() == set()


async def test_bytes_are_not_taken_away_between_showing_and_recording_them(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, coming = await house.filled("leaving"), await house.make("coming")
    show, deleting = Shelf.show, list[asyncio.Task[None]]()

    async def show_and_let_the_other_try(self: Shelf, arrived: Arrived) -> Path:
        note = await show(self, arrived)
        deleting.append(asyncio.create_task(house.service.delete(leaving, None)))
        await asyncio.wait(deleting, timeout=0.2)  # it must not get through now; if it could it would in this time
        return note

    monkeypatch.setattr(Shelf, "show", show_and_let_the_other_try)
    assert (await house.put(coming, "disk", RAW)).status_code == 200
    await deleting[0]
    assert house.files() == {sha(RAW)}
    assert house.incoming() == []


async def test_an_image_deleted_while_its_file_comes(house: House) -> None:
    image_id = await house.make("a")

    async def pieces() -> AsyncIterator[bytes]:
        yield RAW[: MIB // 2]
        await house.http.delete(f"{PATH}/{image_id}")
        await house.make("a")  # another of the same name must not get it
        yield RAW[MIB // 2 :]

    problem_of(await house.put("a", "disk", pieces()), 404, "not_found")
    assert (await house.http.get(f"{PATH}/a")).json()["files"] == []
    assert (house.files(), house.incoming()) == (set(), [])


# -- what breaks off -------------------------------------------------------------------------------------------------


async def test_given_up_in_mid_upload_nothing_is_left(house: House) -> None:
    image_id = await house.make()
    reached = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield RAW
        reached.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(house.service.put_file(image_id, FileRole.DISK, pieces()))
    await reached.wait()
    assert len(house.incoming()) == 1
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert (house.files(), house.incoming()) == (set(), [])


async def test_given_up_while_it_is_recorded_record_and_file_agree(house: House) -> None:
    """Cancelled at many different moments: either both are there or neither."""

    async def pieces() -> AsyncIterator[bytes]:
        yield RAW

    for turns in range(60):
        image_id = await house.make(f"i{turns}")
        putting = asyncio.create_task(house.service.put_file(image_id, FileRole.DISK, pieces()))
        for _ in range(turns):
            await asyncio.sleep(0)
        putting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await putting
        files = house.records.find(IMAGES, image_id).record.files
        assert house.files() == {file.digest for file in files}
        assert house.incoming() == []
        await house.http.delete(f"{PATH}/{image_id}")


async def test_given_up_while_the_store_writes_it_waits_for_the_outcome(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit goes on when nobody waits for it any more: only its outcome tells whether the file stays."""
    image_id = await house.make()
    reached, gate, commit = asyncio.Event(), asyncio.Event(), house.records.commit

    async def late(*words: Any, **more: Any) -> int:
        async def write() -> int:
            await gate.wait()
            return await commit(*words, **more)

        reached.set()
        return await asyncio.shield(asyncio.create_task(write()))

    async def pieces() -> AsyncIterator[bytes]:
        yield RAW

    monkeypatch.setattr(house.records, "commit", late)
    putting = asyncio.create_task(house.service.put_file(image_id, FileRole.DISK, pieces()))
    await reached.wait()
    putting.cancel()
    await asyncio.wait([putting], timeout=0.1)  # time to do wrong
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await house.records.caught_up(await house.records.store.revision())
    assert [file.digest for file in house.records.find(IMAGES, image_id).record.files] == [sha(RAW)]
    assert house.files() == {sha(RAW)}


async def test_a_broken_connection_leaves_nothing(house: House) -> None:
    image_id = await house.make()
    sent: list[dict[str, Any]] = []
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": RAW, "more_body": True}, {"type": "http.disconnect"}]
    )
    scope = {
        "type": "http", "method": "PUT", "path": f"{PATH}/{image_id}/files/disk", "raw_path": b"", "query_string": b"",
        "headers": [(b"authorization", f"Bearer {house.token}".encode())], "http_version": "1.1", "scheme": "http",
        "server": ("novacron.test", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    await house.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert (house.files(), house.incoming()) == (set(), [])


CHILD = """
import asyncio, os, random, signal, sys
from pathlib import Path
from novacron.clock import SystemClock
from novacron.config import ServerConfig
from novacron.control.images import shelf
from novacron.control.images.service import ImageService
from novacron.control.once import Once
from novacron.control.room import Room
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.model.image import FileRole
from novacron.wire.rest.images import ImageCreate

async def main(pool, when):
    store = await SqliteStore.open(pool / "store.db")
    clock = SystemClock()
    records = Records(store, clock, random.Random(1))
    await records.start()
    service = ImageService(records, Room(records, ServerConfig(data_dir=pool, pool_dir=pool)), clock, pool)

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    async def die_later(*_, **__):
        die()

    async def pieces():
        yield bytes(1 << 20)
        if when == "coming":
            die()
        yield bytes(512)

    made = await service.create(ImageCreate(name="a"), Once(store, "", "", clock.wall()))
    if when == "shown":
        records.commit = die_later
    if when == "recorded":
        shelf.Shelf.settle = die_later
    await service.put_file(made.stored.record.id, FileRole.DISK, pieces())
    if when == "condemned":
        records.commit = die_later
    if when == "forgotten":
        shelf.Shelf.settle = die_later
    await service.delete("a", None)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.system
@pytest.mark.parametrize(
    ("when", "kept"),
    [("coming", False), ("shown", False), ("recorded", True), ("condemned", True), ("forgotten", False)],
)
async def test_killed_at_any_point_the_next_start_puts_it_right(tmp_path: Path, when: str, kept: bool) -> None:
    pool = tmp_path / "pool"
    (pool / "images").mkdir(parents=True)
    child = await asyncio.to_thread(lambda: subprocess.run([sys.executable, "-c", CHILD, pool, when], check=False))
    assert child.returncode == -signal.SIGKILL
    async with a_house(pool, pool) as house:
        assert len(house.incoming()) == 1
        await house.service.sweep()
        recorded = {file.digest for image in house.records.all(IMAGES) for file in image.record.files}
        assert recorded == house.files() == ({sha(bytes(MIB + 512))} if kept else set())
        assert house.incoming() == []


async def test_the_sweep_leaves_alone_what_it_knows_nothing_of(house: House) -> None:
    """A pool may hold the files of another store: an image without a note is nobody's business."""
    stranger = house.pool / "images" / ("e" * 64)
    stranger.write_bytes(b"x")
    await house.service.sweep()
    assert stranger.exists()


async def test_a_pool_that_is_not_there_is_said(house: House, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="mounted"):
        await Shelf(tmp_path / "nowhere").free_bytes()
    (house.pool / "images").rmdir()
    image_id = await house.make()
    problem_of(await house.put(image_id, "disk", RAW), 503, "unavailable")


@pytest.mark.system
@pytest.mark.root
async def test_a_full_pool_is_507_and_nothing_is_left(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    pool = tmp_path / "disk"
    pool.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", pool], check=True)
    try:
        async with a_house(tmp_path, pool) as house:
            image_id = await house.make()

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(8):
                    yield bytes(MIB)

            problem_of(await house.put(image_id, "disk", pieces()), 507, "no_room")
            assert (house.files(), house.incoming()) == (set(), [])
            kept = await house.filled("kept")
            with pytest.raises(OSError, match="No space"):
                (pool / "ballast").write_bytes(bytes(4 * MIB))
            problem_of(await house.put(image_id, "disk", pieces()), 507, "no_room")
            assert (await house.http.delete(f"{PATH}/{kept}")).status_code == 204
            assert (house.files(), house.incoming()) == (set(), [])
    finally:
        subprocess.run(["umount", pool], check=True)
