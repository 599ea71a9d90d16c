"""What a machine keeps beside its volumes, as bytes that move: its UEFI variables, and its TPM's state when it is off.

The directory belongs to the machine's user, who may be hostile: no name in it is followed anywhere else.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

from novacron.agent.drivers.qemu import tpm
from novacron.agent.drivers.qemu.command import VARS_FILE
from novacron.agent.drivers.qemu.rundir import SAFE, RunDir
from novacron.errors import DriverError, Reason, Unsupported
from novacron.model.machine import Belonging

TPM_STATE = "tpm2-00.permall"
TPM_LOCK = ".lock"
TPM_NAME = f"{tpm.FOLDER}/{TPM_STATE}"
MAX_FILE_BYTES = 1 << 20
TPM_ENDS_WITHIN_S = 5.0  # it sees its machine's end a moment later
LOOK_PAUSE_S = 0.01


def pack(keep: Path, *, with_tpm: bool) -> tuple[Belonging, ...]:
    """The files there are of a machine that stands still; with_tpm: it has ended, and its TPM with it. Blocks.

    :raise DriverError: one cannot be read, or its TPM goes on. :raise Unsupported: one is too large.
    """
    if not keep.is_dir():
        return ()
    found = [(VARS_FILE, RunDir(keep), VARS_FILE)]
    chip = RunDir(keep / tpm.current(keep))
    if with_tpm and chip.path.is_dir():
        _await_end(chip)
        found.append((TPM_NAME, chip, TPM_STATE))
    read = ((name, _read(folder, file)) for name, folder, file in found)
    return tuple(Belonging(name=name, data=data) for name, data in read if data is not None)


def unpack(keep: Path, files: tuple[Belonging, ...], uid: int | None, gid: int | None) -> None:
    """Have them there, on the disk, as the machine's user's own. Asked again: written again. Blocks.

    What has a file open keeps it: it is written in place. :raise DriverError: it cannot be, or is no file of a machine.
    """
    for one in files:
        if one.name not in (VARS_FILE, TPM_NAME):
            raise DriverError(f"{one.name!r} is nothing that belongs to a machine: is the other node's agent newer?")
    try:
        for one in files:
            folder = RunDir(keep)
            if one.name == TPM_NAME:
                folder.make_folder(tpm.FOLDER, uid, gid)
                folder = RunDir(keep / tpm.FOLDER)
            _write(folder, Path(one.name).name, one.data, uid, gid)
    except OSError as wrong:
        raise DriverError(f"what belongs to the machine cannot be written in {keep}: {wrong}") from wrong


def _await_end(chip: RunDir) -> None:
    """A TPM that works holds its folder's lock."""
    give_up_s = time.monotonic() + TPM_ENDS_WITHIN_S
    while True:
        try:
            with chip.opened() as directory:
                lock = os.open(TPM_LOCK, os.O_RDWR | os.O_NONBLOCK | SAFE, dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as wrong:
            raise DriverError(f"the lock of the TPM's state cannot be read: {wrong}") from wrong
        with os.fdopen(lock, "rb"):
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as held:
                if time.monotonic() > give_up_s:
                    raise DriverError("its TPM still works, and its state may change") from held
            else:
                return
        time.sleep(LOOK_PAUSE_S)


def _read(folder: RunDir, name: str) -> bytes | None:
    """A plain file, whole; None: there is none."""
    try:
        with folder.opened() as directory:
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=directory)
        with os.fdopen(handle, "rb") as file:
            _check_plain(handle, name)
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as wrong:
        raise DriverError(f"{name} of the machine cannot be read: {wrong}") from wrong
    if len(data) > MAX_FILE_BYTES:
        message = f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB"
        reason = Reason("belonging.too_large", message, name, "give both nodes the same default pool")
        raise Unsupported(f"{message}, and is not copied to another node", [reason])
    return data


def _write(folder: RunDir, name: str, data: bytes, uid: int | None, gid: int | None) -> None:
    with folder.opened() as directory:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | SAFE
        handle = os.open(name, flags, 0o600, dir_fd=directory)
        with os.fdopen(handle, "wb") as file:
            seen = _check_plain(handle, name)
            if seen.st_size not in (0, len(data)):
                raise DriverError(f"{name} has {seen.st_size} bytes on this node, and {len(data)} on the other")
            if uid is not None or gid is not None:
                os.fchown(handle, -1 if uid is None else uid, -1 if gid is None else gid)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.fsync(directory)


def _check_plain(handle: int, name: str) -> os.stat_result:
    """:raise DriverError: what has that name may be something else, too."""
    seen = os.fstat(handle)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
        raise DriverError(f"{name} of the machine is no plain file")
    return seen
