"""What belongs to a machine and is no volume: its UEFI variables and the state of its TPM.

They lie in the default pool, beside the volumes, so that they outlive the node's boot and are where the machine goes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from novacron.errors import DriverError
from novacron.model.identity import is_id
from novacron.model.machine import Firmware, MachineSpec


def needed(spec: MachineSpec) -> bool:
    """Whether a machine has any."""
    return spec.tpm or spec.firmware is Firmware.UEFI


def make(root: Path, vm_id: str, uid: int | None) -> Path:
    """The machine's directory, its user's alone; made when missing. :raise DriverError: it cannot be."""
    try:
        root.mkdir(mode=0o711, exist_ok=True)
        path = path_of(root, vm_id)
        path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            os.chown(path, uid, uid, follow_symlinks=False)
    except OSError as wrong:
        raise DriverError(f"the directory of machine {vm_id} in its pool cannot be made: {wrong}") from wrong
    return path


def path_of(root: Path, vm_id: str) -> Path:
    """The machine's directory; it need not exist."""
    return root / _checked(vm_id)


def is_there(root: Path, vm_id: str) -> bool:
    """Whether anything lies in its directory. Blocks."""
    path = path_of(root, vm_id)
    return path.is_symlink() or (path.is_dir() and any(path.iterdir()))


def flush(root: Path, vm_id: str) -> None:
    """What its hypervisor wrote is on the disk when this returns. None there: fine. Blocks.

    :raise DriverError: it may not be.
    """
    path = path_of(root, vm_id)
    if not path.is_dir():
        return
    try:
        for *_, names, directory in os.fwalk(path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # written anew this moment
                    _sync(name, directory)
            os.fsync(directory)
    except OSError as wrong:
        raise DriverError(f"the directory of machine {vm_id} in its pool cannot be flushed: {wrong}") from wrong


def _sync(name: str, directory: int) -> None:
    if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        return
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(root: Path, vm_id: str) -> None:
    """For good. Absent: fine. Blocks. :raise DriverError: it cannot be."""
    path = path_of(root, vm_id)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    except OSError as wrong:
        raise DriverError(f"the directory of machine {vm_id} in its pool cannot be removed: {wrong}") from wrong


def _checked(vm_id: str) -> str:
    if not is_id(vm_id):
        raise DriverError(f"{vm_id!r} is not a VM id")
    return vm_id
