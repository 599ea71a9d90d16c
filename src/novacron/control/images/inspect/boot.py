"""Kernel, initrd and firmware: enough to tell a mix-up before a machine hangs on it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from novacron.control.images.inspect.iso import check_iso
from novacron.control.images.inspect.source import Source
from novacron.model.image import FileRole

SECTOR = 512
DEFAULT_SETUP_SECTORS = 4  # what 0 stands for, since the days of floppy disks
FIRMWARE_STEP = 64 << 10  # QEMU maps it below 4 GiB in such steps
MAX_FIRMWARE_BYTES = 16 << 20

INITRD_MAGICS = (
    b"070701",  # cpio, as the kernel takes it; microcode is put before the rest in this form
    b"070702",
    b"\x1f\x8b",  # gzip
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\xfd7zXZ\x00",
    b"\x02\x21\x4c\x18",  # lz4, the form the kernel takes
)


def check_kernel(source: Source) -> None:
    """A Linux kernel for x86 with the boot protocol (bzImage). :raise ImageRefused"""
    head = source.piece(0, 0x264)
    if len(head) < 0x264 or head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        raise source.refusal("image.kernel", "it is no bzImage", "upload the vmlinuz of an x86-64 distribution")
    sectors = head[0x1F1] or DEFAULT_SETUP_SECTORS
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    if source.size_bytes < (1 + sectors) * SECTOR + paragraphs * 16:
        raise source.refusal("image.truncated", "it is shorter than its header says", "upload the whole file")


def check_initrd(source: Source) -> None:
    """A cpio archive, plain or compressed in a way the kernel knows. :raise ImageRefused"""
    head = source.piece(0, 8)
    if not head.startswith(INITRD_MAGICS):
        raise source.refusal(
            "image.initrd", "it is no initrd", "upload a cpio archive, plain or compressed with gzip, zstd, xz or lz4"
        )


def check_firmware(source: Source) -> None:
    """Whole steps of 64 KiB, 16 MiB at most. :raise ImageRefused"""
    if source.size_bytes == 0 or source.size_bytes % FIRMWARE_STEP or source.size_bytes > MAX_FIRMWARE_BYTES:
        raise source.refusal(
            "image.firmware",
            f"its {source.size_bytes} bytes are not a firmware's",
            "upload one of a multiple of 64 KiB, at most 16 MiB",
        )


CHECKS: Mapping[FileRole, Callable[[Source], None]] = {
    FileRole.KERNEL: check_kernel,
    FileRole.INITRD: check_initrd,
    FileRole.FIRMWARE: check_firmware,
    FileRole.CDROM: check_iso,
}
