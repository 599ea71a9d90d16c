"""Kernel modules and what they need, read from the modules themselves (the package carries no modules.dep)."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

from novacron.lab.failure import LabFailed

WANTED = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_scsi",
    "sd_mod",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "button",  # the ACPI power button ...
    "evdev",  # ... and where it can be read
)


def load_order(directory: Path, wanted: Iterable[str] = WANTED) -> list[tuple[str, bytes]]:
    """(file name, contents) of every wanted module and all they need, each after what it needs.

    :raise LabFailed: a module is missing.
    """
    paths = {_plain(path.name.split(".")[0]): path for path in directory.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def take(name: str) -> None:
        if name in order:
            return
        if name not in paths:
            raise LabFailed.because(f"kernel module {name} is not in {directory}", "remove the cache and build again")
        contents = _read(paths[name])
        for needed in needs(contents):
            take(needed)
        order[name] = contents

    for name in wanted:
        take(_plain(name))
    return [(f"{name}.ko", contents) for name, contents in order.items()]


def needs(module: bytes) -> list[str]:
    """The modules this one needs, from the `depends=` entry every module carries in its .modinfo section."""
    _, found, rest = module.partition(b"\0depends=")
    if not found:
        return []
    return [_plain(name) for name in rest.split(b"\0", 1)[0].decode().split(",") if name]


def _read(path: Path) -> bytes:
    contents = path.read_bytes()
    return lzma.decompress(contents) if path.suffix == ".xz" else contents


def _plain(name: str) -> str:
    """Modules are named with - and _ alike."""
    return name.replace("-", "_")
