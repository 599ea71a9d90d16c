"""A machine's TPM 2.0: an swtpm of its own, as the machine's user, held by nothing but its connection to QEMU.

They share a pair of sockets and no name in any directory. When QEMU ends, however it ends, the swtpm sees the other
end close and ends too, so there is nothing to adopt and nothing to clear away.

Its state lies beside the volumes and travels in the migration stream too. While a machine moves there are two of them,
each locks its folder, and either may turn out to be the one that lives: so the target's has a folder of its own, and a
note says which counts. The note is written by whoever may continue the machine, just before it does.
"""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

from novacron.agent.drivers.qemu.process import Process, spawn
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import DriverError, Unsupported

BINARY = "swtpm"
FEATURE = "tpm"
FOLDER = "tpm"
NOTE = "tpm.current"
MAX_NOTE_BYTES = 64
_FOLDER = re.compile(r"tpm(-[0-9]{1,12})?\Z")


def is_installed() -> bool:
    return shutil.which(BINARY) is not None


def folder(keep: Path, generation: int, *, incoming: bool) -> str:
    """Where the state of a machine that is about to be made lies: as noted, or, for one that arrives, a new place."""
    noted = current(keep)
    if not incoming:
        return noted
    mine = f"{FOLDER}-{generation + 1}"  # the generation under which it will run, if it does
    if mine != noted:
        drop(keep, mine)  # of an attempt that failed
    return mine


def current(keep: Path) -> str:
    """The folder that counts."""
    noted = (RunDir(keep).read_own(NOTE, MAX_NOTE_BYTES) or b"").decode("ascii", "replace")
    return noted if _FOLDER.match(noted) else FOLDER


def claim(keep: str, mine: str) -> None:
    """From here on this folder counts. No TPM: nothing. :raise DriverError: it cannot be noted."""
    try:
        if mine and current(Path(keep)) != mine:
            RunDir(Path(keep)).write_own(NOTE, mine.encode())
    except OSError as wrong:
        raise DriverError(f"which TPM state counts cannot be noted: {wrong}") from wrong


def leave(keep: str, mine: str) -> None:
    """This folder is done with, unless it is the one that counts."""
    if mine and current(Path(keep)) != mine:
        drop(Path(keep), mine)


def drop(keep: Path, name: str) -> None:
    shutil.rmtree(keep / name, ignore_errors=True)


def begin(run_dir: RunDir, place: Path, stderr: int, uid: int | None, gid: int | None) -> tuple[Process, socket.socket]:
    """A TPM with the state in `place`, and QEMU's end of the pair; the caller closes it, and kills what QEMU never met.

    :raise Unsupported: this node has no swtpm. :raise DriverError: it cannot be started.
    """
    binary = shutil.which(BINARY)
    if binary is None:
        raise Unsupported("this node has no TPM emulator: install swtpm")
    RunDir(place.parent).make_folder(place.name, uid, gid)
    ours, its = socket.socketpair()
    with its:
        argv = [binary, "socket", "--tpm2", "--tpmstate", f"dir={place},mode=0600"]
        argv += ["--ctrl", f"type=unixio,clientfd={its.fileno()}", "--terminate"]
        try:
            return spawn(argv, directory=run_dir.path, stderr=stderr, uid=uid, gid=gid, pass_fds=[its.fileno()]), ours
        except BaseException as wrong:
            ours.close()
            if isinstance(wrong, OSError):
                raise DriverError(f"the TPM emulator cannot be started: {wrong}") from wrong
            raise
