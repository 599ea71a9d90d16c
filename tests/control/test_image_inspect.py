"""What the inspector lets in and what it refuses: images of the real qemu-img, hostile headers, and noise."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from novacron.control.images.inspect import Inspected, inspect, inspect_disk
from novacron.control.images.inspect.qcow2 import MAGIC
from novacron.control.images.inspect.source import MAX_PIECE_BYTES, MAX_READ_BYTES
from novacron.errors import ImageRefused
from novacron.model.image import DiskFormat, FileRole

MIB = 1 << 20
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


class Read:
    """A reader over bytes that keeps to the contract and counts what is asked."""

    def __init__(self, data: bytes, claimed_size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if claimed_size is None else claimed_size
        self.total = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= self.size
        assert 0 < length <= MAX_PIECE_BYTES
        assert offset + length <= self.size
        self.total += length
        assert self.total <= MAX_READ_BYTES
        return self.data[offset : offset + length]


def look(data: bytes, role: FileRole = FileRole.DISK) -> Inspected:
    read = Read(data)
    return inspect(role, read, read.size)


def refused(data: bytes, role: FileRole = FileRole.DISK) -> str:
    """The code of the one reason it is refused for."""
    with pytest.raises(ImageRefused) as raised:
        look(data, role)
    (reason,) = raised.value.reasons
    assert reason.subject == role.value
    assert reason.message
    assert reason.remedy
    return reason.code


def qemu_img(directory: Path, *words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True, cwd=directory)


def made(directory: Path, *options: str, size: str = "64M", fmt: str = "qcow2") -> bytes:
    """What `qemu-img create` makes."""
    qemu_img(directory, "create", "-q", "-f", fmt, *options, "made", size)
    return (directory / "made").read_bytes()


# -- a sound header to mutate ----------------------------------------------------------------------------------------

CLUSTER = 1 << 16


def header(*, extensions: bytes = b"", tail: bytes = b"", file_clusters: int = 5, **fields: int) -> bytes:
    """A sound qcow2 v3 file of 64 MiB with the named fields replaced."""
    values = {
        "version": 3, "backing_file_offset": 0, "backing_file_size": 0, "cluster_bits": 16, "size": 64 * MIB,
        "crypt_method": 0, "l1_size": 1, "l1_table_offset": 3 * CLUSTER, "refcount_table_offset": CLUSTER,
        "refcount_table_clusters": 1, "nb_snapshots": 0, "snapshots_offset": 0, "incompatible": 0, "compatible": 0,
        "autoclear": 0, "refcount_order": 4, "header_length": 104,
    }  # fmt: skip
    assert fields.keys() <= values.keys()
    values |= fields
    packed = MAGIC + struct.pack(">IQIIQIIQQIIQQQQII", *values.values()) + tail + extensions
    return packed.ljust(file_clusters * CLUSTER, b"\0")


def extension(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust((len(data) + 7) // 8 * 8, b"\0")


# -- what is let in --------------------------------------------------------------------------------------------------


def test_the_header_the_mutations_start_from_is_sound() -> None:
    assert look(header()) == Inspected(DiskFormat.QCOW2, 64 * MIB)


@needs_qemu_img
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "cluster_size=512"),
        ("-o", "cluster_size=2M"),
        ("-o", "extended_l2=on,cluster_size=128k"),
        ("-o", "compression_type=zstd"),
        ("-o", "lazy_refcounts=on"),
        ("-o", "refcount_bits=1"),
        ("-o", "refcount_bits=64"),
        ("-o", "preallocation=metadata"),
        ("-o", "preallocation=full"),
    ],
    ids=lambda options: options[1] if options else "plain",
)
def test_what_qemu_img_makes_is_let_in(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert look(made(tmp_path, *options)) == Inspected(DiskFormat.QCOW2, 64 * MIB)


@needs_qemu_img
@pytest.mark.parametrize("size", ["512", "1M", "5T"])
def test_sizes_from_one_sector_up(tmp_path: Path, size: str) -> None:
    expected = {"512": 512, "1M": MIB, "5T": 5 << 40}[size]
    assert look(made(tmp_path, size=size)).virtual_size_bytes == expected


@needs_qemu_img
def test_grown_and_written_images_are_let_in(tmp_path: Path) -> None:
    made(tmp_path, "-o", "cluster_size=4k", size="1M")
    qemu_img(tmp_path, "resize", "-f", "qcow2", "made", "3G")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 8M", tmp_path / "made"], check=True, capture_output=True)
    assert look((tmp_path / "made").read_bytes()).virtual_size_bytes == 3 << 30
    qemu_img(tmp_path, "convert", "-c", "-f", "qcow2", "-O", "qcow2", "made", "packed")
    assert look((tmp_path / "packed").read_bytes()).virtual_size_bytes == 3 << 30


def test_raw_is_any_whole_number_of_sectors() -> None:
    assert look(bytes(512)) == Inspected(DiskFormat.RAW, 512)
    boot_sector = bytes(510) + b"\x55\xaa"
    assert look(boot_sector + bytes(MIB)) == Inspected(DiskFormat.RAW, MIB + 512)
    assert look(os.urandom(64).replace(b"\x1f", b"\0").rjust(4096, b"\xeb")).format is DiskFormat.RAW


# -- what points elsewhere -------------------------------------------------------------------------------------------


@needs_qemu_img
@pytest.mark.parametrize(
    "backing", ["/etc/passwd", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}']
)
def test_a_backing_file(tmp_path: Path, backing: str) -> None:
    assert refused(made(tmp_path, "-u", "-b", backing, "-F", "raw")) == "image.backing_file"


@needs_qemu_img
def test_a_data_file(tmp_path: Path) -> None:
    data = made(tmp_path, "-o", "data_file=other")
    assert refused(data) == "image.data_file"
    bits = bytearray(data)
    bits[72:80] = bytes(8)  # the feature bit taken away, the extension left: the case QEMU itself once followed
    assert refused(bytes(bits)) == "image.data_file"


def test_encryption() -> None:
    """LUKS around everything; inside a qcow2 it is a field of the header. (qemu-img needs seconds to make one.)"""
    for magic in (b"LUKS\xba\xbe\x00\x01", b"LUKS\xba\xbe\x00\x02", b"SKUL\xba\xbe\x00\x02"):
        assert refused(magic.ljust(4096, b"\0")) == "image.encrypted"


@needs_qemu_img
def test_internal_snapshots(tmp_path: Path) -> None:
    made(tmp_path)
    qemu_img(tmp_path, "snapshot", "-c", "one", "made")
    assert refused((tmp_path / "made").read_bytes()) == "image.snapshots"


@needs_qemu_img
def test_dirty_bitmaps(tmp_path: Path) -> None:
    made(tmp_path)
    qemu_img(tmp_path, "bitmap", "--add", "-f", "qcow2", "made", "b")
    assert refused((tmp_path / "made").read_bytes()) == "image.bitmaps"


@needs_qemu_img
def test_the_old_version(tmp_path: Path) -> None:
    assert refused(made(tmp_path, "-o", "compat=0.10")) == "image.version"
    assert refused(made(tmp_path, fmt="qcow")) == "image.version"


@needs_qemu_img
@pytest.mark.parametrize(
    ("fmt", "options", "code"),
    [
        ("vmdk", (), "image.vmdk"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "image.vmdk"),
        ("vpc", (), "image.vhd"),
        ("vpc", ("-o", "subformat=fixed"), "image.vhd"),
        ("vhdx", (), "image.vhdx"),
        ("qed", (), "image.qed"),
        ("vdi", (), "image.vdi"),
        ("parallels", (), "image.parallels"),
    ],
)
def test_other_formats_do_not_pass_as_raw(tmp_path: Path, fmt: str, options: tuple[str, ...], code: str) -> None:
    data = made(tmp_path, *options, fmt=fmt)
    assert refused(data) == code
    assert refused(data.ljust((len(data) + 511) // 512 * 512, b"\0")) == code or fmt == "vpc"


def test_archives_and_compressed_files_say_to_unpack_them() -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.vmdk"))
    assert refused(tar.getvalue()) == "image.archive"
    assert refused(gzip.compress(bytes(MIB))) == "image.compressed"
    assert refused(b"\xfd7zXZ\x00".ljust(1024, b"\0")) == "image.compressed"
    iso = bytearray(40 * 1024)
    iso[0x8001:0x8006] = b"CD001"
    assert refused(bytes(iso)) == "image.iso"


# -- hostile headers -------------------------------------------------------------------------------------------------

TOO_BIG = 1 << 60


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (header(backing_file_offset=200, backing_file_size=11), "image.backing_file"),
        (header(backing_file_offset=200), "image.backing_file"),
        (header(backing_file_size=11), "image.backing_file"),
        (header(extensions=extension(0xE2792ACA, b"raw")), "image.backing_file"),
        (header(incompatible=1 << 2), "image.data_file"),
        (header(autoclear=1 << 1), "image.data_file"),
        (header(extensions=extension(0x44415441, b"/etc/passwd")), "image.data_file"),
        (header(extensions=extension(0x6803F857, bytes(96)) + extension(0x44415441, b"x")), "image.data_file"),
        (header(crypt_method=1), "image.encrypted"),
        (header(crypt_method=2), "image.encrypted"),
        (header(extensions=extension(0x0537BE77, bytes(16))), "image.encrypted"),
        (header(extensions=extension(0x12345678)), "image.extension"),
        (header(extensions=extension(0x6803F857)[:4] + b"\xff\xff\xff\xff"), "image.extension"),
        (header(incompatible=1 << 0), "image.dirty"),
        (header(incompatible=1 << 1), "image.corrupt"),
        (header(incompatible=1 << 5), "image.feature"),
        (header(incompatible=1 << 63), "image.feature"),
        (header(incompatible=1 << 3), "image.compression"),
        (header(incompatible=1 << 3, header_length=112, tail=b"\x02" + bytes(7)), "image.compression"),
        (header(header_length=112, tail=b"\x01" + bytes(7)), "image.compression"),
        (header(version=0), "image.version"),
        (header(version=4), "image.version"),
        (header(cluster_bits=8), "image.cluster_size"),
        (header(cluster_bits=22), "image.cluster_size"),
        (header(cluster_bits=0xFFFFFFFF), "image.cluster_size"),
        (header(cluster_bits=13, incompatible=1 << 4), "image.cluster_size"),
        (header(refcount_order=7), "image.refcounts"),
        (header(header_length=72), "image.header_size"),
        (header(header_length=105), "image.header_size"),
        (header(header_length=CLUSTER + 8), "image.header_size"),
        (header(header_length=0xFFFFFFF8), "image.header_size"),
        (header(nb_snapshots=1), "image.snapshots"),
        (header(nb_snapshots=0xFFFFFFFF, snapshots_offset=TOO_BIG), "image.snapshots"),
        (header(size=0), "image.sectors"),
        (header(size=64 * MIB + 1), "image.sectors"),
        (header(size=4 << 60), "image.virtual_size"),
        (header(size=(1 << 64) - 512), "image.virtual_size"),
        (header(l1_size=0), "image.l1_table"),
        (header(l1_size=0xFFFFFFFF), "image.l1_table"),
        (header(l1_size=(32 << 20) // 8 + 1), "image.l1_table"),
        (header(l1_size=(32 << 20) // 8), "image.l1_table"),
        (header(size=1 << 40), "image.l1_table"),
        (header(l1_table_offset=0), "image.l1_table"),
        (header(l1_table_offset=CLUSTER * 3 + 8), "image.l1_table"),
        (header(l1_table_offset=CLUSTER * 5), "image.l1_table"),
        (header(l1_table_offset=(1 << 64) - CLUSTER), "image.l1_table"),
        (header(refcount_table_clusters=0), "image.refcounts"),
        (header(refcount_table_clusters=0xFFFFFFFF), "image.refcounts"),
        (header(refcount_table_clusters=129), "image.refcounts"),
        (header(refcount_table_clusters=5), "image.refcounts"),
        (header(refcount_table_offset=0), "image.refcounts"),
        (header(refcount_table_offset=TOO_BIG), "image.refcounts"),
    ],
)  # fmt: skip
def test_a_hostile_header_is_refused(data: bytes, code: str) -> None:
    assert refused(data) == code


def test_an_extension_area_may_fill_its_cluster() -> None:
    names = extension(0x6803F857, bytes(CLUSTER - 104 - 8))
    assert look(header(extensions=names)).format is DiskFormat.QCOW2


@pytest.mark.parametrize("length", [4, 7, 8, 71, 103, 104, 111, 200])
def test_a_truncated_header_is_refused(length: int) -> None:
    assert refused(header()[:length]) in ("image.truncated", "image.l1_table")
    assert refused(MAGIC) == "image.truncated"


def test_a_file_shorter_than_told_is_refused() -> None:
    """It was cut while being read."""
    with pytest.raises(ImageRefused) as raised:
        inspect_disk(Read(header()[:50], claimed_size=5 * CLUSTER), 5 * CLUSTER)
    assert raised.value.reasons[0].code == "image.truncated"


def test_the_limit_of_the_virtual_size_is_the_callers() -> None:
    raw, qcow2 = Read(bytes(2 * MIB)), Read(header())
    assert inspect_disk(raw, raw.size, max_virtual_bytes=2 * MIB)[1] == 2 * MIB
    for read, limit in ((raw, 2 * MIB - 512), (qcow2, 64 * MIB - 512)):
        with pytest.raises(ImageRefused) as raised:
            inspect_disk(read, read.size, max_virtual_bytes=limit)
        assert raised.value.reasons[0].code == "image.virtual_size"


def test_raw_that_is_not_whole_sectors() -> None:
    for size in (0, 1, 511, 513):
        assert refused(bytes(size)) == "image.sectors"


# -- kernel, initrd, firmware ----------------------------------------------------------------------------------------


def kernel(*, sectors: int = 1, paragraphs: int = 64, size: int = 4096) -> bytes:
    data = bytearray(size)
    data[0x1F1] = sectors
    data[0x1F4:0x1F8] = struct.pack("<I", paragraphs)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    return bytes(data)


def test_kernels() -> None:
    assert look(kernel(), FileRole.KERNEL) == Inspected()
    for wrong in (b"", b"\x7fELF" + bytes(4096), kernel()[:0x206], bytes(4096), header()):
        assert refused(wrong, FileRole.KERNEL) == "image.kernel"
    for short in (kernel(paragraphs=1024), kernel(sectors=0, size=2000), kernel(paragraphs=0xFFFFFFFF)):
        assert refused(short, FileRole.KERNEL) == "image.truncated"


@pytest.mark.parametrize(
    "magic", [b"070701", b"070702", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18"]
)
def test_initrds(magic: bytes) -> None:
    assert look(magic + bytes(100), FileRole.INITRD) == Inspected()
    assert refused(b"x" + magic, FileRole.INITRD) == "image.initrd"
    assert refused(magic[:1], FileRole.INITRD) == "image.initrd"


def test_firmwares() -> None:
    for size in (64 << 10, 256 << 10, 16 << 20):
        assert look(bytes(size), FileRole.FIRMWARE) == Inspected()
    for size in (0, 512, (64 << 10) + 1, (16 << 20) + (64 << 10)):
        assert refused(bytes(size), FileRole.FIRMWARE) == "image.firmware"


# -- noise -----------------------------------------------------------------------------------------------------------


def survives(data: bytes, role: FileRole) -> None:
    """It ends with an answer or a refusal, having read no more than it may (Read sees to that)."""
    with contextlib.suppress(ImageRefused):
        look(data, role)


@settings(max_examples=300, deadline=None)
@given(role=st.sampled_from(FileRole), data=st.binary(max_size=2048))
@example(role=FileRole.DISK, data=MAGIC)
def test_noise_is_answered_or_refused(role: FileRole, data: bytes) -> None:
    survives(data, role)


_word = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, CLUSTER]))
_fields = [
    ("cluster_bits", 32), ("size", 64), ("l1_size", 32), ("l1_table_offset", 64), ("refcount_table_offset", 64),
    ("refcount_table_clusters", 32), ("incompatible", 64), ("refcount_order", 32), ("header_length", 32),
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    words=st.dictionaries(st.sampled_from(_fields), _word, max_size=3),
    extensions=st.lists(st.tuples(_word, st.binary(max_size=20)), max_size=3),
    cut=st.one_of(st.none(), st.integers(0, 5 * CLUSTER)),
)
def test_mutated_headers_are_answered_or_refused(
    words: dict[tuple[str, int], int], extensions: list[tuple[int, bytes]], cut: int | None
) -> None:
    fields = {name: word & (1 << bits) - 1 for (name, bits), word in words.items()}
    area = b"".join(extension(kind & 0xFFFFFFFF, data) for kind, data in extensions)
    data = header(extensions=area, **fields)  # type: ignore[arg-type]
    survives(data[:cut], FileRole.DISK)


@needs_qemu_img
@pytest.mark.parametrize("change", [lambda data: data, lambda data: data[: CLUSTER * 3 + 8]], ids=["whole", "shortest"])
def test_what_is_let_in_qemu_img_can_open(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """The sound header is one for QEMU too, so that the mutations are of the real thing."""
    data = change(header())
    assert look(data).format is DiskFormat.QCOW2
    (tmp_path / "sound").write_bytes(data)
    qemu_img(tmp_path, "info", "-f", "qcow2", "sound")


# -- ISO images ------------------------------------------------------------------------------------------------------


def iso(sectors: int = 20, magic: bytes = b"\1CD001") -> bytes:
    """The least that is one."""
    head = magic.ljust(80, b"\0") + struct.pack("<I", sectors)
    return (bytes(16 * 2048) + head).ljust(20 * 2048, b"\0")


def test_an_iso_image_passes() -> None:
    assert look(iso(), FileRole.CDROM) == Inspected()


def test_what_is_no_iso_image_is_refused() -> None:
    assert refused(iso(magic=b"\1CD002"), FileRole.CDROM) == "image.iso"
    assert refused(bytes(100), FileRole.CDROM) == "image.iso"
    assert refused(iso(sectors=21), FileRole.CDROM) == "image.truncated"
