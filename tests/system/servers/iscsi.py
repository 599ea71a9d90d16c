"""tgt serving LUNs on a port of loopback, with CHAP."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.ports import free_port
from tests.system.servers.process import run, serving

TARGET = "iqn.2026-01.example.novacron:disks"
USER, PASSWORD = "novacron", "a-secret-of-16-b"

missing = None
if shutil.which("tgtd") is None or not Path("/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so").exists():
    missing = "tgt and qemu-block-extra are not installed"
elif os.geteuid() != 0:
    missing = "tgtd needs root"


class Tgt(msgspec.Struct, frozen=True):
    portal: str
    password_file: Path


@contextlib.contextmanager
def tgt(directory: Path, sizes: dict[str, int]) -> Iterator[Tgt]:
    """sizes: LUNs (numbers from 1) to make, in bytes."""
    port = free_port()
    control = str(port % 32768)  # names a socket, which must be our own
    admin = ("tgtadm", "-C", control, "--lld", "iscsi")

    def is_ready() -> bool:
        asked = subprocess.run([*admin, "--mode", "sys", "--op", "show"], capture_output=True, check=False)
        return asked.returncode == 0

    words = ("tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{port}", "--control-port", control)
    log = directory / "tgtd.log"
    try:
        with serving(words, log, is_ready):
            run(*admin, "--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET)
            for lun, size in sizes.items():
                file = directory / f"lun{lun}"
                with file.open("wb") as made:
                    made.truncate(size)
                run(*admin, "--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", lun, "-b", file)
            run(*admin, "--mode", "account", "--op", "new", "--user", USER, "--password", PASSWORD)
            run(*admin, "--mode", "account", "--op", "bind", "--tid", "1", "--user", USER)
            run(*admin, "--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
            secret = directory / "chap"
            secret.write_text(f"{PASSWORD}\n")
            secret.chmod(0o600)
            yield Tgt(f"127.0.0.1:{port}", secret)
    finally:
        for left in Path("/var/run/tgtd").glob(f"socket.{control}*"):
            left.unlink(missing_ok=True)
