"""A volume group with a thin pool on a loop device."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.system.servers.process import run

THIN_POOL = "tests"

missing = None
if os.geteuid() != 0 or shutil.which("lvcreate") is None or shutil.which("thin_check") is None:
    missing = "lvm2 and thin-provisioning-tools are not installed, or this is not root"
elif not Path("/sys/class/misc/device-mapper").exists():
    missing = "this kernel has no device-mapper"


@contextlib.contextmanager
def thin_pool(directory: Path) -> Iterator[str]:
    """The volume group's name."""
    group, disk = f"novacron-{uuid.uuid4().hex[:8]}", directory / "pv"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    device = run("losetup", "--find", "--show", disk).strip()
    try:
        run("vgcreate", group, device)
        try:
            run("lvcreate", "--yes", "--type", "thin-pool", "--size", "512M", "--name", THIN_POOL, group)
            yield group
        finally:
            run("vgremove", "--force", "--yes", group)
    finally:
        run("losetup", "--detach", device)
