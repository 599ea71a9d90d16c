"""Disks, discs and network programs that start, and say so: a word on the serial line, over and over."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import pycdlib

SECTOR = 512
_HERE = Path(__file__).parent
_CLUSTERS = 2800
_FAT_SECTORS, _ROOT_SECTORS = 9, 14
_END = 0xFFF


def bios_program(word: str, folder: Path) -> bytes:
    """What BIOS starts, at 0x7c00. folder: for what lies there while it is made."""
    return _assembled(_HERE / "boot_bios.S", 0x7C00, folder) + _said(word)


def ticking_program(folder: Path, *, once: bool = False, twin: bool = False) -> bytes:
    """What BIOS starts, and that ticks (see boot_ticks.S). once: it wipes what it was started from; twin: it writes to
    two disks, one after the other, as fast as it can.
    """
    return _assembled(_HERE / "boot_ticks.S", 0x7C00, folder) + bytes([once, twin])


def uefi_program(word: str, folder: Path) -> bytes:
    """What UEFI starts: an x86-64 application."""
    return (_assembled(_HERE / "boot_uefi.S", 0, folder) + _said(word)).ljust(0x400, b"\0")


def disk(path: Path, program: bytes) -> Path:
    """A raw disk that BIOS starts from."""
    path.write_bytes((program.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    return path


def disc(path: Path, word: str) -> Path:
    """An ISO image that BIOS and UEFI start from."""
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="BOOT")
    for name, content in (
        ("BIOS", bios_program(word, path.parent).ljust(2048, b"\0")),
        ("UEFI", _volume(uefi_program(word, path.parent))),
    ):
        iso.add_fp(io.BytesIO(content), len(content), f"/{name}.;1")
    iso.add_eltorito("/BIOS.;1", boot_load_size=4)
    iso.add_eltorito("/UEFI.;1", efi=True, boot_load_size=1)
    iso.write(str(path))
    iso.close()
    return path


def _said(word: str) -> bytes:
    return f"{word}\r\n".encode() + b"\0"


def _assembled(source: Path, at: int, folder: Path) -> bytes:
    made, image = folder / "program.o", folder / "program.bin"
    link = ["ld", "-m", "elf_x86_64", "-Ttext", hex(at), "--oformat", "binary", "-o", str(image), str(made)]
    for command in (["as", "--64", "-o", str(made), str(source)], link):
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    try:
        return image.read_bytes()
    finally:
        made.unlink()
        image.unlink()


def _volume(program: bytes) -> bytes:
    """A FAT12 file system that holds it as EFI/BOOT/BOOTX64.EFI, where firmware looks."""
    clusters = len(program) // SECTOR
    chain = [0xFF8, _END, _END, _END, *range(5, 4 + clusters), _END]  # two directories, then the file from cluster 4
    chain += [0] * (len(chain) % 2)
    fat = b"".join((low | high << 12).to_bytes(3, "little") for low, high in zip(chain[::2], chain[1::2], strict=True))
    sectors = 1 + _FAT_SECTORS + _ROOT_SECTORS + _CLUSTERS
    head = b"\xeb\x3c\x90TEST    " + struct.pack(
        "<HBHBHHBHHHII", SECTOR, 1, 1, 1, _ROOT_SECTORS * 16, sectors, 0xF8, _FAT_SECTORS, 1, 1, 0, 0
    )
    head += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 1, b"BOOT       ", b"FAT12   ")
    parts = (
        head.ljust(SECTOR - 2, b"\0") + b"\x55\xaa",
        fat.ljust(_FAT_SECTORS * SECTOR, b"\0"),
        _entry("EFI", 0x10, 2).ljust(_ROOT_SECTORS * SECTOR, b"\0"),
        (_entry(".", 0x10, 2) + _entry("..", 0x10, 0) + _entry("BOOT", 0x10, 3)).ljust(SECTOR, b"\0"),
        (_entry(".", 0x10, 3) + _entry("..", 0x10, 2) + _entry("BOOTX64", 0, 4, len(program), "EFI")).ljust(
            SECTOR, b"\0"
        ),
        program,
    )
    return b"".join(parts).ljust(sectors * SECTOR, b"\0")


def _entry(name: str, kind: int, cluster: int, size: int = 0, extension: str = "") -> bytes:
    return struct.pack("<8s3sB14xHI", name.ljust(8).encode(), extension.ljust(3).encode(), kind, cluster, size)
