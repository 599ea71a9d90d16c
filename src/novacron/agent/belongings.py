"""What belongs to a machine and is no volume: its UEFI variables and the state of its TPM.

They lie in the default pool, beside the volumes, so that they outlive the node's boot and are where the machine goes.
"""

from __future__ import annotations

import os
import shutil
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
        path = root / _checked(vm_id)
        path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            os.chown(path, uid, uid, follow_symlinks=False)
    except OSError as wrong:
        raise DriverError(f"the directory of machine {vm_id} in its pool cannot be made: {wrong}") from wrong
    return path


def remove(root: Path, vm_id: str) -> None:
    """For good. Absent: fine. Blocks. :raise DriverError: it cannot be."""
    path = root / _checked(vm_id)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    except OSError as wrong:
        raise DriverError(f"the directory of machine {vm_id} in its pool cannot be removed: {wrong}") from wrong


def _checked(vm_id: str) -> str:
    if not is_id(vm_id):
        raise DriverError(f"{vm_id!r} is not a VM id")
    return vm_id
