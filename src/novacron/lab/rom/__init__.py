"""The smallest guest: a 64 KiB ROM that ticks on its serial line and checks its own memory, built on demand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

TABLE_AT = 0xFF00
ROM_BYTES = 64 << 10
SOURCE = Path(__file__).with_name("guest.S")


def rom(
    cache_dir: Path,
    pages_per_tick: int = 0,
    wss_pages: int = 0,
    pit_divisor: int = 0,
    *,
    button: bool = False,
    noise: bool = False,
) -> Path:
    """A ROM file with this in it, readable by every user; built once into `cache_dir`.

    It rewrites `pages_per_tick` pages of 4 KiB at each tick, round and round a working set of `wss_pages` that begins
    at 1 MiB. pit_divisor 0: 100 ticks a second; 65535: 18. button: it switches itself off when the power button of a
    q35 is pressed; else it knows none. noise: its working set is random, and other at each boot; else what a page holds
    is one number.

    :raise ValueError: pages or noise without a working set. :raise OSError: binutils are not installed, or the cache
    directory cannot be written. :raise subprocess.CalledProcessError: the source does not assemble.
    """
    if (pages_per_tick or noise) and not wss_pages:
        raise ValueError("a guest that writes pages needs a working set")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    extras = "-button" * button + "-noise" * noise
    found = cache_dir / f"guest-{digest}-{pages_per_tick}-{wss_pages}-{pit_divisor}{extras}.rom"
    if not found.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        image = bytearray(assemble(SOURCE))
        told = (pages_per_tick, wss_pages, pit_divisor, button, noise)
        table = b"".join(int(number).to_bytes(4, "little") for number in told)
        image[TABLE_AT : TABLE_AT + len(table)] = table
        fresh = found.with_name(f".{found.name}.{os.getpid()}")
        fresh.write_bytes(image)
        fresh.chmod(0o644)
        fresh.replace(found)
    return found


def assemble(source: Path) -> bytes:
    """A 64 KiB ROM from one assembly file, by binutils. Errors: as `rom`."""
    with tempfile.TemporaryDirectory() as folder:
        made, image = f"{folder}/guest.o", Path(folder, "guest.rom")
        link = ["ld", "-m", "elf_x86_64", "-Ttext", "0", "--oformat", "binary", "-o", str(image), made]
        for command in (["as", "--64", "-o", made, str(source)], link):
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # noqa: S603
        data = image.read_bytes()
    if len(data) != ROM_BYTES:
        raise ValueError(f"{source} makes {len(data)} bytes, a ROM has {ROM_BYTES}")
    return data
