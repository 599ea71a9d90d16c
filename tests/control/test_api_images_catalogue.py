"""Tags, protection and what is swept: a tag is on one image, what is needed stays, what nobody needs goes."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.control.images import catalogue
from novacron.control.store.kinds import POOLS, VMS, VOLUMES
from novacron.control.store.records import remove
from novacron.errors import CompareFailed
from novacron.model.machine import Disk, Media
from novacron.model.pool import Pool, PoolDriver
from novacron.model.vm import Desired, Vm, VmSpec
from novacron.model.volume import Volume
from tests.control.api import Api
from tests.control.images_house import MIB, PATH, ImageHouse, image_house, problem_of, sha

pytestmark = pytest.mark.anyio

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
DISK = b"\xeb\x63" + os.urandom(MIB - 2)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as made:
        yield made


async def tag(house: ImageHouse, ref: str, *tags: str) -> list[str]:
    answer = await house.http.patch(f"{PATH}/{ref}", json={"tags": list(tags)})
    assert answer.status_code == 200, answer.text
    found: list[str] = answer.json()["tags"]
    return found


async def named_by(house: ImageHouse, ref: str) -> str | None:
    answer = await house.http.get(f"{PATH}/{ref}")
    return str(answer.json()["name"]) if answer.status_code == 200 else None


# -- tags ------------------------------------------------------------------------------------------------------------


async def test_a_tag_leads_to_its_image_and_moves_to_the_next(house: ImageHouse) -> None:
    await house.filled("debian-12.1", DISK)
    await house.filled("debian-12.2", DISK)
    assert await tag(house, "debian-12.1", "debian:latest", "debian:12", "debian:latest") == [
        "debian:latest",
        "debian:12",
    ]
    assert await named_by(house, "debian:latest") == "debian-12.1"
    await tag(house, "debian-12.2", "debian:latest")
    assert await named_by(house, "debian:latest") == "debian-12.2"
    assert await named_by(house, "debian:12") == "debian-12.1"
    old = (await house.http.get(f"{PATH}/debian-12.1")).json()
    assert old["tags"] == ["debian:12"]
    await tag(house, "debian:12")
    assert await named_by(house, "debian:12") is None


async def test_whoever_asks_at_once_one_gets_it(house: ImageHouse) -> None:
    names = [f"i{number}" for number in range(6)]
    for name in names:
        await house.filled(name, DISK)
    for _ in range(3):
        answers = await asyncio.gather(
            *(house.http.patch(f"{PATH}/{name}", json={"tags": ["debian:latest"]}) for name in names)
        )
        assert {answer.status_code for answer in answers} <= {200, 409}
        held = [name for name in names if (await house.http.get(f"{PATH}/{name}")).json()["tags"]]
        assert len(held) == 1
        assert await named_by(house, "debian:latest") == held[0]


async def test_of_two_who_saw_the_tag_free_one_loses(house: ImageHouse) -> None:
    ids = [await house.filled(name, DISK) for name in ("one", "two")]
    writes = [await catalogue.retag(house.records, image_id, ["debian:latest"]) for image_id in ids]
    await house.records.commit(writes[0])
    with pytest.raises(CompareFailed):
        await house.records.commit(writes[1])


async def test_a_tag_goes_with_its_image(house: ImageHouse) -> None:
    await house.filled("one", DISK)
    await tag(house, "one", "debian:latest")
    assert (await house.http.delete(f"{PATH}/debian:latest")).status_code == 204
    assert await named_by(house, "debian:latest") is None
    await house.filled("two", DISK)
    assert await tag(house, "two", "debian:latest") == ["debian:latest"]


async def test_tags_outlive_a_restart(tmp_path: Path) -> None:
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as before:
        await before.filled("one", DISK)
        await tag(before, "one", "debian:latest")
    async with image_house(tmp_path, tmp_path / "pool", filling=False) as after:
        assert await named_by(after, "debian:latest") == "one"


async def test_only_a_ready_image_is_tagged(house: ImageHouse) -> None:
    await house.make("coming")
    answer = await house.http.patch(f"{PATH}/coming", json={"tags": ["debian:latest"]})
    problem_of(answer, 409, "state_conflict")


@pytest.mark.parametrize(
    "name", ["latest", "Debian:latest", "a:", ":b", "a:b:c", "a b:c", "a:b\n", "a" * 64 + ":b", "-a:b"]
)
async def test_what_is_no_tag(house: ImageHouse, name: str) -> None:
    await house.filled("one", DISK)
    assert (await house.http.patch(f"{PATH}/one", json={"tags": [name]})).status_code == 422


async def test_a_vm_is_made_from_what_a_tag_names_now(api: Api) -> None:
    await api.node()
    one = await api.image("debian-12.1", tags=("debian:latest",))
    answer = await api.http.post("/api/v1/vms", json={"name": "web-1", "image": "debian:latest"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["image_id"] == one.id
    unknown = await api.http.post("/api/v1/vms", json={"name": "web-2", "image": "debian:none"})
    assert unknown.status_code == 422


# -- protection ------------------------------------------------------------------------------------------------------


async def test_a_protected_image_stays_until_it_is_not(house: ImageHouse) -> None:
    image_id = await house.filled("one", DISK)
    await house.http.patch(f"{PATH}/one", json={"protected": True})
    problem = problem_of(await house.http.delete(f"{PATH}/{image_id}"), 409, "conflict")
    assert problem["reasons"][0]["code"] == "image.protected"
    assert house.files() == {sha(DISK)}
    await house.http.patch(f"{PATH}/one", json={"protected": False})
    assert (await house.http.delete(f"{PATH}/{image_id}")).status_code == 204


# -- files -----------------------------------------------------------------------------------------------------------


async def test_a_file_of_a_pending_image_is_taken_away_again(house: ImageHouse) -> None:
    image_id = await house.make()
    await house.put(image_id, "disk", DISK)
    assert (await house.http.delete(f"{PATH}/{image_id}/files/disk")).json()["files"] == []
    assert (house.files(), house.left()) == (set(), [])
    problem_of(await house.http.delete(f"{PATH}/{image_id}/files/disk"), 404, "not_found")
    ready = await house.filled("ready", DISK)
    problem_of(await house.http.delete(f"{PATH}/{ready}/files/disk"), 409, "state_conflict")
    assert house.files() == {sha(DISK)}


@pytest.mark.parametrize("user", ["vm", "volume", "drive"])
async def test_a_file_outlives_its_image_as_long_as_somebody_needs_it(house: ImageHouse, user: str) -> None:
    image_id = await house.filled("one", DISK)
    digest = sha(DISK)
    disk = Disk(volume_id=house.records.new_id(), size_bytes=MIB, backing_digest=digest)
    if user == "volume":
        made = await house.records.create(POOLS, _pool(house))
        volume = Volume(
            id=house.records.new_id(), name="v", pool_id=made.record.id, size_bytes=MIB, backing_digest=digest,
            created_at=NOW, updated_at=NOW,
        )  # fmt: skip
        stored, kind = await house.records.create(VOLUMES, volume), VOLUMES
    else:
        media = (Media(id=house.records.new_id(), digest=digest),)
        disks, drives = ((disk,), ()) if user == "vm" else ((), media)
        spec = VmSpec(image_id=house.records.new_id(), disks=disks, media=drives)
        vm = Vm(
            id=house.records.new_id(), name="web", spec=spec, desired=Desired.STOPPED, created_at=NOW, updated_at=NOW
        )
        stored, kind = await house.records.create(VMS, vm), VMS  # type: ignore[assignment]
    assert (await house.http.delete(f"{PATH}/{image_id}")).status_code == 204
    await house.service.collect()
    assert house.files() == {digest}
    await house.records.commit(remove(kind, stored))
    await house.service.collect()
    assert (house.files(), house.left()) == (set(), [])


async def test_a_file_whose_bytes_come_again_is_the_images(house: ImageHouse) -> None:
    image_id = await house.filled("one", DISK)
    disk = Disk(volume_id=house.records.new_id(), size_bytes=MIB, backing_digest=sha(DISK))
    spec = VmSpec(image_id=house.records.new_id(), disks=(disk,))
    vm = Vm(id=house.records.new_id(), name="web", spec=spec, desired=Desired.STOPPED, created_at=NOW, updated_at=NOW)
    stored = await house.records.create(VMS, vm)
    await house.http.delete(f"{PATH}/{image_id}")
    await house.filled("two", DISK)
    await house.records.commit(remove(VMS, stored))
    await house.service.collect()
    assert (house.files(), house.left()) == ({sha(DISK)}, [])


async def test_the_collection_leaves_alone_what_is_coming_in_and_what_is_not_its_own(house: ImageHouse) -> None:
    stranger = house.pool / "images" / ("e" * 64)
    stranger.write_bytes(b"x")
    image_id = await house.make()
    reached, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DISK[:1000]
        reached.set()
        await gate.wait()
        yield DISK[1000:]

    putting = asyncio.create_task(house.put(image_id, "disk", slow()))
    await reached.wait()
    await house.service.collect()
    gate.set()
    assert (await putting).status_code == 200
    assert house.files() == {sha(DISK), "e" * 64}


def _pool(house: ImageHouse) -> Pool:
    return Pool(id=house.records.new_id(), name="p", driver=PoolDriver.DIRECTORY, created_at=NOW, updated_at=NOW)
