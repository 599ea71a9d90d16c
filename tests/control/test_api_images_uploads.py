"""Uploads in pieces: they outlive broken lines and servers, have one writer, and end compared or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from novacron.control.images import sink
from novacron.errors import Malformed
from tests.control.images_house import MIB, PATH, ImageHouse, image_house, problem_of, sha

pytestmark = pytest.mark.anyio

DISK = b"\xeb\x63" + os.urandom(3 * MIB - 2)
TUS = "application/offset+octet-stream"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as made:
        yield made


async def begin(house: ImageHouse, image: str, content: bytes = DISK, role: str = "disk") -> dict[str, Any]:
    body = {"size_bytes": len(content), "sha256": sha(content)}
    answer = await house.http.post(f"{PATH}/{image}/files/{role}/upload", json=body)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{PATH}/{told['image_id']}/uploads/{told['id']}"
    assert answer.headers["upload-offset"] == str(told["offset_bytes"])
    return told


def where(upload: dict[str, Any]) -> str:
    return f"{PATH}/{upload['image_id']}/uploads/{upload['id']}"


async def send(
    house: ImageHouse, upload: dict[str, Any], offset: int, content: Any, kind: str = TUS
) -> httpx2.Response:
    headers = {"upload-offset": str(offset), "content-type": kind}
    return await house.http.patch(where(upload), content=content, headers=headers)


async def offset_of(house: ImageHouse, upload: dict[str, Any]) -> int:
    answer = await house.http.get(where(upload))
    assert answer.status_code == 200, answer.text
    assert answer.headers["upload-offset"] == str(answer.json()["offset_bytes"])
    return int(answer.json()["offset_bytes"])


async def broken_off(content: bytes) -> AsyncIterator[bytes]:
    yield content
    raise Malformed("the upload broke off")


async def test_piece_by_piece(house: ImageHouse) -> None:
    image = await house.make()
    upload = await begin(house, image)
    assert upload["offset_bytes"] == 0
    for start in range(0, len(DISK), MIB + 7):
        answer = await send(house, upload, start, DISK[start : start + MIB + 7])
        assert (answer.status_code, answer.content) == (204, b"")
        assert int(answer.headers["upload-offset"]) == min(len(DISK), start + MIB + 7)
    done = await house.http.post(f"{where(upload)}/finish")
    assert done.status_code == 200, done.text
    (file,) = done.json()["files"]
    assert (file["digest"], file["size_bytes"], file["format"]) == (sha(DISK), len(DISK), "raw")
    assert (house.files(), house.left()) == ({sha(DISK)}, [])
    problem_of(await house.http.get(where(upload)), 404, "not_found")


async def test_finishing_twice_with_one_key_is_finishing_once(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    await send(house, upload, 0, DISK)
    key = {"idempotency-key": "k"}
    first, second = [await house.http.post(f"{where(upload)}/finish", headers=key) for _ in range(2)]
    assert (first.status_code, first.json()) == (second.status_code, second.json())


async def test_a_broken_line_keeps_what_came(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    with pytest.raises(Malformed):
        await house.service.append(upload["image_id"], upload["id"], 0, broken_off(DISK[:1234567]), None)
    assert await offset_of(house, upload) == 1234567
    assert (await send(house, upload, 1234567, DISK[1234567:])).status_code == 204
    assert (await house.http.post(f"{where(upload)}/finish")).status_code == 200
    assert house.files() == {sha(DISK)}


async def test_a_restarted_server_goes_on_and_counts_anew(tmp_path: Path) -> None:
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as before:
        image = await before.make()
        upload = await begin(before, image)
        await send(before, upload, 0, DISK[:2000000])
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as after:
        again = await begin(after, image)  # who asks for the same file is led to what is there
        assert (again["id"], again["offset_bytes"]) == (upload["id"], 2000000)
        await send(after, upload, 2000000, DISK[2000000:])
        assert (await after.http.post(f"{where(upload)}/finish")).status_code == 200
        assert (after.files(), after.left()) == ({sha(DISK)}, [])


async def test_another_file_gets_an_upload_of_its_own(house: ImageHouse) -> None:
    image = await house.make()
    one = await begin(house, image)
    other = await begin(house, image, DISK[:512])
    role = await begin(house, image, role="initrd")
    elsewhere = await begin(house, await house.make("other"))
    assert len({one["id"], other["id"], role["id"], elsewhere["id"]}) == 4


async def test_only_the_next_byte_is_taken(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    await send(house, upload, 0, DISK[:1000])
    for offset in (0, 999, 1001, 1 << 60):
        problem = problem_of(await send(house, upload, offset, b"x"), 409, "conflict")
        assert [(one["code"], one["subject"]) for one in problem["reasons"]] == [("upload.offset", "1000")]
    problem_of(await house.http.post(f"{where(upload)}/finish"), 409, "conflict")
    assert await offset_of(house, upload) == 1000


async def test_more_than_announced_is_refused_and_the_rest_kept(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    problem_of(await send(house, upload, 0, DISK + b"x"), 413, "too_large")
    offset = await offset_of(house, upload)
    assert offset <= len(DISK)
    await send(house, upload, offset, DISK[offset:])
    assert (await house.http.post(f"{where(upload)}/finish")).status_code == 200


async def test_other_bytes_than_announced_are_thrown_away(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    await send(house, upload, 0, DISK[:-1] + bytes([DISK[-1] ^ 1]))
    problem = problem_of(await house.http.post(f"{where(upload)}/finish"), 422, "image_refused")
    assert problem["reasons"][0]["code"] == "image.digest"
    problem_of(await house.http.get(where(upload)), 404, "not_found")
    assert (house.files(), house.left()) == (set(), [])


async def test_what_is_refused_when_whole_is_thrown_away(house: ImageHouse) -> None:
    hostile = b"QFI\xfb" + bytes(508)
    upload = await begin(house, await house.make(), hostile)
    await send(house, upload, 0, hostile)
    problem_of(await house.http.post(f"{where(upload)}/finish"), 422, "image_refused")
    assert (house.files(), house.left()) == (set(), [])


async def test_a_second_writer_takes_over(house: ImageHouse) -> None:
    """The first one's line is dead, and nobody has noticed."""
    upload = await begin(house, await house.make())
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield DISK[:1000]
        reached.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(send(house, upload, 0, stuck()))
    await reached.wait()
    early = await send(house, upload, 0, DISK)
    offset = int(problem_of(early, 409, "conflict")["reasons"][0]["subject"])  # what the first one had got in
    assert (await send(house, upload, offset, DISK[offset:])).status_code == 204
    problem_of(await asyncio.wait_for(first, 10), 409, "busy")
    assert (await house.http.post(f"{where(upload)}/finish")).status_code == 200


async def test_two_writers_at_once_never_mix(house: ImageHouse) -> None:
    for number in range(8):
        upload = await begin(house, await house.make(f"i{number}"))
        answers = await asyncio.gather(*(send(house, upload, 0, DISK) for _ in range(3)))
        while (offset := await offset_of(house, upload)) < len(DISK):
            answers.append(await send(house, upload, offset, DISK[offset:]))
        assert {one.status_code for one in answers} <= {204, 409}
        done = await house.http.post(f"{where(upload)}/finish")
        assert done.status_code == 200, done.text


async def test_memory_does_not_grow_with_the_file(house: ImageHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    pwrite = os.pwrite

    def watched(handle: int, data: Any, offset: int) -> int:
        kept.append(len(data))
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    monkeypatch.setattr(sink, "PIECE_BYTES", MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(DISK), 50000):
            yield DISK[start : start + 50000]

    upload = await begin(house, await house.make())
    assert (await send(house, upload, 0, pieces())).status_code == 204
    assert max(kept) < MIB + 50000


@pytest.mark.parametrize(
    "upload_id", ["0190b36e-0000-7000-8000-00000000aaaa", "%2e%2e", "%2e%2e%2fimages", "-" * 36, "x" * 400]
)
async def test_unknown_uploads(house: ImageHouse, upload_id: str) -> None:
    image = await house.make()
    answers = [
        await house.http.get(f"{PATH}/{image}/uploads/{upload_id}"),
        await house.http.patch(f"{PATH}/{image}/uploads/{upload_id}", content=b"x", headers={"upload-offset": "0"}),
        await house.http.post(f"{PATH}/{image}/uploads/{upload_id}/finish"),
        await house.http.delete(f"{PATH}/{image}/uploads/{upload_id}"),
    ]
    assert {answer.status_code for answer in answers} <= {404, 405, 422}


async def test_an_upload_belongs_to_its_image(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    other = await house.make("other")
    problem_of(await house.http.get(f"{PATH}/{other}/uploads/{upload['id']}"), 404, "not_found")
    problem_of(await house.http.delete(f"{PATH}/{other}/uploads/{upload['id']}"), 404, "not_found")


async def test_nothing_is_added_to_a_ready_image(house: ImageHouse) -> None:
    image = await house.make()
    upload = await begin(house, image)
    await house.put(image, "disk", DISK)
    await house.http.post(f"{PATH}/{image}/seal")
    problem_of(await send(house, upload, 0, DISK), 409, "state_conflict")
    problem_of(await house.http.post(f"{where(upload)}/finish"), 409, "state_conflict")


async def test_given_up(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    await send(house, upload, 0, DISK[:1000])
    assert (await house.http.delete(where(upload))).status_code == 204
    assert house.left() == []


async def test_what_is_announced_is_bounded(house: ImageHouse) -> None:
    image = await house.make()
    for role, size in (("firmware", 17 << 20), ("disk", 1 << 41)):
        body = {"size_bytes": size, "sha256": "0" * 64}
        problem_of(await house.http.post(f"{PATH}/{image}/files/{role}/upload", json=body), 413, "too_large")
    body = {"size_bytes": 1 << 40, "sha256": "0" * 64}
    problem_of(await house.http.post(f"{PATH}/{image}/files/disk/upload", json=body), 507, "no_room")


async def test_a_day_old_and_orphaned_uploads_are_swept_and_others_stay(house: ImageHouse) -> None:
    image = await house.make()
    old = await begin(house, image)
    fresh = await begin(house, image, DISK[:512])
    orphan = await begin(house, await house.make("leaving"))
    await house.http.delete(f"{PATH}/leaving")
    directory = house.pool / "uploads" / old["id"]
    for path in (directory, *directory.iterdir()):
        os.utime(path, (1, 1))
    stranger = house.pool / "uploads" / "somebody-elses"
    stranger.mkdir()
    await house.service.collect()
    left = {path.name for path in (house.pool / "uploads").iterdir()}
    assert left == {fresh["id"], "somebody-elses"}
    assert orphan["id"] not in left


async def test_the_collection_leaves_an_upload_that_is_written_to(house: ImageHouse) -> None:
    upload = await begin(house, await house.make())
    directory = house.pool / "uploads" / upload["id"]
    reached, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DISK[:1000]
        reached.set()
        await gate.wait()
        yield DISK[1000:]

    sending = asyncio.create_task(send(house, upload, 0, slow()))
    await reached.wait()
    for path in (directory, *directory.iterdir()):
        os.utime(path, (1, 1))
    await house.service.collect()
    gate.set()
    assert (await sending).status_code == 204
