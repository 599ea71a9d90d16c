"""Disks of other formats: streamOptimized VMDK and OVA are converted; whatever could reach elsewhere is refused."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.control.images import convert
from novacron.control.images.inspect import inspect
from novacron.errors import ImageRefused
from novacron.model.image import DiskFormat, FilePhase, FileRole, Hints, SourceFormat
from tests.control.appliances import DISK, good, member, ova, ovf
from tests.control.images_house import MIB, PATH, ImageHouse, image_house, problem_of, sha, streamed_vmdk

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
pytestmark = [pytest.mark.anyio, needs_qemu_img]
CONTENT = (b"NOVACRON" * 512).ljust(MIB, b"\0") + os.urandom(64 << 10) + bytes(3 * MIB - (64 << 10))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path, tmp_path / "pool") as made:
        yield made


@pytest.fixture(scope="module")
def vmdk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return streamed_vmdk(tmp_path_factory.mktemp("vmdk"), CONTENT)


def refused(data: bytes) -> str:
    with pytest.raises(ImageRefused) as raised:
        inspect(FileRole.DISK, lambda offset, length: data[offset : offset + length], len(data))
    (reason,) = raised.value.reasons
    return reason.code


# -- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SourceFormat.VMDK, SourceFormat.OVA])
async def test_it_becomes_a_qcow2_with_the_same_content(
    house: ImageHouse, vmdk: bytes, tmp_path: Path, kind: SourceFormat
) -> None:
    sent = vmdk if kind is SourceFormat.VMDK else good(vmdk)
    image_id = await house.make()
    answer = await house.put(image_id, "disk", sent)
    assert answer.status_code == 202, answer.text
    assert [(task["role"], task["phase"]) for task in answer.json()["tasks"]] == [("disk", "converting")]
    early = await house.http.post(f"{PATH}/{image_id}/seal")
    if early.status_code != 200:  # it may have been quick
        assert problem_of(early, 409, "conflict")["reasons"][0]["code"] == "image.file_awaited"
    image = await house.until(image_id, lambda one: bool(one.files) or not _is_at_work(one))
    assert image.tasks == ()
    (disk,) = image.files
    assert (disk.format, disk.virtual_size_bytes) == (DiskFormat.QCOW2, len(CONTENT))
    assert (disk.source_format, disk.source_digest) == (kind, sha(sent))
    assert image.hints == (Hints(vcpus=2, memory_mib=1536) if kind is SourceFormat.OVA else Hints())
    path = house.pool / "images" / disk.digest
    assert (sha(path.read_bytes()), path.stat().st_mode & 0o777, path.stat().st_uid) == (
        disk.digest,
        0o444,
        os.geteuid(),
    )
    flat = tmp_path / "flat"
    assert (
        os.spawnlp(os.P_WAIT, "qemu-img", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(flat)) == 0
    )
    assert flat.read_bytes() == CONTENT
    await house.tidied()
    assert (await house.http.post(f"{PATH}/{image_id}/seal")).status_code == 200


async def test_a_restarted_server_converts_what_the_last_one_had_not(tmp_path: Path, vmdk: bytes) -> None:
    pool = tmp_path / "pool"
    async with image_house(tmp_path, pool, filling=False) as before:
        image_id = await before.make()
        assert (await before.put(image_id, "disk", vmdk)).status_code == 202
    async with image_house(tmp_path, pool) as after:
        image = await after.until(image_id, lambda one: bool(one.files))
        assert image.tasks == ()
        await after.tidied()


async def test_a_disk_that_qemu_cannot_read_is_told(house: ImageHouse, vmdk: bytes) -> None:
    image_id = await house.make()
    broken = vmdk[: 128 * 512] + os.urandom(512) + vmdk[128 * 512 + 512 :]
    assert (await house.put(image_id, "disk", broken)).status_code == 202
    image = await house.until(image_id, lambda one: not _is_at_work(one))
    (task,) = image.tasks
    assert task.phase is FilePhase.FAILED
    assert task.problem is not None
    assert (house.files(), house.left()) == (set(), [])
    problem = problem_of(await house.http.post(f"{PATH}/{image_id}/seal"), 409, "conflict")
    assert problem["reasons"][0]["code"] == "image.file_failed"
    assert (await house.http.delete(f"{PATH}/{image_id}/files/disk")).json()["tasks"] == []


# -- VMDKs that are refused ------------------------------------------------------------------------------------------


def header(vmdk: bytes, **fields: int) -> bytes:
    """The same file with fields of its header changed."""
    places = {
        "version": ("<I", 4), "flags": ("<I", 8), "capacity": ("<Q", 12), "grain": ("<Q", 20), "desc": ("<Q", 28),
        "desc_size": ("<Q", 36), "gtes": ("<I", 44), "rgd": ("<Q", 48), "gd": ("<Q", 56), "unclean": ("B", 72),
        "compression": ("<H", 77),
    }  # fmt: skip
    changed = bytearray(vmdk)
    for name, value in fields.items():
        form, place = places[name]
        struct.pack_into(form, changed, place, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"version": 9}, "image.vmdk"),
        ({"flags": 3}, "image.vmdk"),  # an ordinary sparse extent
        ({"flags": 0x30003 | 1 << 5}, "image.vmdk"),
        ({"compression": 0}, "image.vmdk"),
        ({"capacity": 0}, "image.vmdk"),  # QEMU then opens what the descriptor names
        ({"capacity": 1 << 60}, "image.virtual_size"),
        ({"capacity": 1 << 36}, "image.vmdk"),  # 32 TiB: a directory that is too large
        ({"grain": 1}, "image.vmdk"),
        ({"grain": 100}, "image.vmdk"),
        ({"grain": 1 << 40}, "image.vmdk"),
        ({"gtes": 1 << 30}, "image.vmdk"),
        ({"gd": 1 << 40}, "image.vmdk"),
        ({"gd": 0}, "image.vmdk"),
        ({"rgd": 1 << 50}, "image.vmdk"),
        ({"gd": (1 << 64) - 1}, "image.truncated"),  # says it has a footer, and has none
        ({"desc": 0}, "image.vmdk"),
        ({"desc": 1 << 50}, "image.truncated"),
        ({"desc_size": 0}, "image.vmdk"),
        ({"desc_size": 1 << 40}, "image.vmdk"),
        ({"unclean": 1}, "image.vmdk"),
    ],
)
def test_a_header_that_asks_for_too_much(vmdk: bytes, fields: dict[str, int], code: str) -> None:
    assert refused(header(vmdk, **fields)) == code


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b'RW 8192 SPARSE "', b'RW 8192 FLAT "/', "image.data_file"),
        (b"RW 8192 SPARSE", b"RW 9999 SPARSE", "image.data_file"),
        (b'createType="streamOptimized"', b'createType="monolithicFlat" ', "image.vmdk"),
        (b"parentCID=ffffffff", b"parentCID=12345678", "image.backing_file"),
        (b"CID=", b'parentFileNameHint="/x"\nCID=', "image.backing_file"),
    ],
)
def test_a_descriptor_that_leads_elsewhere(vmdk: bytes, old: bytes, new: bytes, code: str) -> None:
    begin, end = 512, 512 + 20 * 512
    descriptor = vmdk[begin:end]
    assert old in descriptor, descriptor[:600]
    changed = descriptor.replace(old, new, 1)
    text = changed.rstrip(b"\0")[: end - begin].ljust(end - begin, b"\0")
    assert refused(vmdk[:begin] + text + vmdk[end:]) == code


def test_a_second_extent_in_the_descriptor(vmdk: bytes) -> None:
    descriptor = vmdk[512:].partition(b"\0")[0]
    more = descriptor + b'\nRW 2048 FLAT "/etc/shadow" 0\n'
    assert refused(vmdk[:512] + more.ljust(20 * 512, b"\0") + vmdk[512 + 20 * 512 :]) == "image.data_file"


def test_a_footer_that_says_something_else_than_the_header(vmdk: bytes) -> None:
    """QEMU believes the footer: capacity 0 there would have it open what the descriptor names."""
    head = header(vmdk, gd=(1 << 64) - 1)
    (gd,) = struct.unpack_from("<Q", vmdk, 56)
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    end = bytes(512)
    footer = header(vmdk, gd=gd)[:512]
    whole = head + bytes(-len(head) % 512)
    inspect_ok = whole + marker + footer + end
    data = inspect_ok
    found = inspect(FileRole.DISK, lambda offset, length: data[offset : offset + length], len(data))
    assert found.virtual_size_bytes == len(CONTENT)
    for changes in ({"capacity": 0}, {"capacity": 1 << 50}, {"grain": 16}, {"gd": (1 << 64) - 1}):
        assert refused(whole + marker + header(footer, **changes) + end) == "image.vmdk"


def bomb(sectors: int) -> bytes:
    """A VMDK whose every grain table entry points at one small grain of a thousandfold ratio."""
    grain = zlib.compress(b"A" * (64 << 10), 9)
    tables = -(-sectors // (128 * 512))
    grain_at = 21
    grain_sectors = -(-(12 + len(grain)) // 512)
    table_at = grain_at + grain_sectors
    gd_at = table_at + 4  # one table that all directory entries name
    fixed = struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", 3, 0x30001, sectors, 128, 1, 20, 512, 0, gd_at, gd_at + 128, 0, b"\n \r\n", 1
    )
    words = ("# Disk DescriptorFile", "version=1", "CID=1", "parentCID=ffffffff", 'createType="streamOptimized"')
    text = "\n".join((*words, "", f'RW {sectors} SPARSE "x"', ""))
    parts = {
        0: fixed,
        1: text.encode(),
        grain_at: struct.pack("<QI", 0, len(grain)) + grain,
        table_at: struct.pack("<I", grain_at) * 512,
        gd_at: struct.pack("<I", table_at) * tables,
    }
    whole = bytearray((gd_at + 128 + -(-tables * 4 // 512)) * 512)
    for place, part in parts.items():
        whole[place * 512 : place * 512 + len(part)] = part
    return bytes(whole)


async def test_a_grain_bomb_is_stopped_at_its_bound(house: ImageHouse) -> None:
    """150 KB that unpack to 4 GiB."""
    sent = bomb(8 << 20)
    assert len(sent) < 200 << 10
    image_id = await house.make()
    assert (await house.put(image_id, "disk", sent)).status_code == 202
    image = await house.until(image_id, lambda one: not _is_at_work(one), 60)
    (task,) = image.tasks
    assert task.problem is not None
    assert (task.phase, task.problem.code) == (FilePhase.FAILED, "image.ratio")
    assert (house.files(), house.left()) == (set(), [])


def test_bounds_grow_with_the_source_and_end_at_the_virtual_size() -> None:
    small = convert.limits_for(convert.Extent(0, 1000, 1 << 40))
    assert small.output_bytes == convert.FREE_BYTES
    large = convert.limits_for(convert.Extent(0, 1 << 30, 10 << 30))
    assert 10 << 30 <= large.output_bytes < 11 << 30


# -- OVAs that are refused -------------------------------------------------------------------------------------------

BILLION = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Envelope>&b;</Envelope>'
EXTERNAL = b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><Envelope/>'
DEEP = b"<a>" * 40 + b"</a>" * 40


def with_ovf(content: bytes, vmdk: bytes) -> bytes:
    return ova(member(b"vm.ovf", content), member(b"disk1.vmdk", vmdk))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (BILLION, "image.ova"),
        (EXTERNAL, "image.ova"),
        (ovf().replace(b"?>", b"?><!DOCTYPE Envelope>", 1), "image.ova"),  # harmless, and refused all the same
        (DEEP, "image.ova"),
        (b"<a>" + b"<b/>" * 30_000 + b"</a>", "image.ova"),
        (b"<Envelope", "image.ova"),
        (b"\xff\xfe\x00", "image.ova"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "image.ova"),
        (ovf("../../etc/passwd"), "image.ova"),
        (ovf("/etc/passwd"), "image.ova"),
        (ovf("http://elsewhere/disk.vmdk"), "image.ova"),
        (ovf(disks=""), "image.ova"),
        (ovf(disks=DISK + DISK.replace("file1", "file2")), "image.ova"),
        (ovf(disks=DISK.replace("file1", "nofile")), "image.ova"),
        (ovf(file=' ovf:compression="gzip"'), "image.ova"),
        (ovf(file=' ovf:chunkSize="100"'), "image.ova"),
        (b"<a>" + b"x" * (1 << 20) + b"</a>", "image.ova"),
    ],
)
def test_a_hostile_description(vmdk: bytes, content: bytes, code: str) -> None:
    assert refused(with_ovf(content, vmdk)) == code


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"../../etc/cron.d/x", b"0"),
        (b"/etc/passwd", b"0"),
        (b"a/b", b"0"),
        (b"..", b"0"),
        (b"a\\b", b"0"),
        (b"a\nb", b"0"),
        (b"\xc3\xa9", b"0"),
        (b"", b"0"),
        (b"link", b"2"),
        (b"hard", b"1"),
        (b"device", b"3"),
        (b"block", b"4"),
        (b"folder", b"5"),
        (b"pipe", b"6"),
        (b"sparse", b"S"),
        (b"longname", b"L"),
        (b"pax", b"x"),
        (b"pax", b"g"),
        (b"disk1.vmdk", b"0"),  # twice
        (b"DISK1.VMDK", b"0"),  # twice on file systems that do not mind case
    ],
)
def test_a_hostile_archive(vmdk: bytes, name: bytes, kind: bytes) -> None:
    extra = member(name, b"", kind=kind, link=b"/etc/passwd")
    assert refused(ova(member(b"vm.ovf", ovf()), member(b"disk1.vmdk", vmdk), extra)) == "image.ova"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (ova(member(b"readme.txt", b"x")), "image.archive"),
        (member(b"vm.ovf", b"x"), "image.truncated"),
        (member(b"vm.ovf", b"x", size=1 << 30), "image.truncated"),
        (ova(*(member(b"vm%d.ovf" % number, b"") for number in range(80))), "image.ova"),
        (ova(member(b"vm.ovf", ovf()), member(b"disk1.vmdk", b"x" * 512)), "image.ova"),
        (ova(member(b"vm.ovf", ovf())), "image.ova"),
    ],
)
def test_an_archive_that_is_no_ova(data: bytes, code: str) -> None:
    assert refused(data) == code


def test_a_tar_with_a_wrong_checksum(vmdk: bytes) -> None:
    data = bytearray(good(vmdk))
    data[0] = ord("w")
    assert refused(bytes(data)) == "image.ova"


def test_the_disk_in_an_ova_is_looked_into_as_one_that_comes_alone(vmdk: bytes) -> None:
    assert refused(good(header(vmdk, capacity=0))) == "image.vmdk"


def _is_at_work(image: object) -> bool:
    return any(task.phase is not FilePhase.FAILED for task in image.tasks)  # type: ignore[attr-defined]
