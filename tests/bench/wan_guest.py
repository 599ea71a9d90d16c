"""Guests with their memory in use, for the bench of migrations over a WAN: started apart, saved in files.

What "in use" means here, of 512 MiB: 208 MiB of page cache over one disk image that all guests have (files of this
machine, each beginning at a block), two Python processes of 64 MiB whose contents no other guest has (records as
objects; documents as text, every fourth one incompressible), and what the kernel and a Python installation take. The
rest was never touched. Each guest boots by itself with a seed of its own, so that like pages lie at unlike addresses.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from novacron.lab.guest import archive
from novacron.lab.guest.build import build
from tests.bench.floor import Monitor

MEMORY_MIB = 512
SHARED_MIB = 208
HEAP_MIB = 64
READY = b"IN USE"
BOOT_DEADLINE_S = 900.0
DEADLINE_S = 120.0
_BLOCK = 4096
_LEFT_OUT = {
    "test",
    "site-packages",
    "ensurepip",
    "idlelib",
    "tkinter",
    "lib2to3",
    "turtledemo",
    "__pycache__",
    "distutils",
}

START = """\
import os, sys
for kind in ("objects", "documents", "files"):
    if os.fork() == 0:
        os.execv({python!r}, [{python!r}, "/work.py", kind])
os.execv("/init", ["/init"])
"""

WORK = """\
import gc, json, os, random, sys, time
gc.disable()
while not os.path.exists("/dev/vda") or not os.path.exists("/proc/cmdline"):
    time.sleep(0.1)
words = dict(word.partition("=")[::2] for word in open("/proc/cmdline").read().split())
kind, pick = sys.argv[1], random.Random(words["bench.seed"] + sys.argv[1])
names = ["".join(pick.choices("abcdefghijklmnopqrstuvwxyz", k=pick.randint(3, 10))) for _ in range(3000)]
kept, size = [], 0

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def record(n):
    return {{"id": n, "name": pick.choice(names) + "." + pick.choice(names), "score": pick.random(),
             "tags": pick.choices(names, k=4), "at": 1.7e9 + n, "parent": pick.randrange(n + 1)}}

def document(n):
    if n % 4 == 0:
        return pick.randbytes(600)
    return json.dumps({{"id": n, "text": " ".join(pick.choices(names, k=60)), "value": pick.random()}}).encode()

if kind == "files":
    disk = open("/dev/vda", "rb")
    while disk.read(1 << 20):
        pass
else:
    make = record if kind == "objects" else document
    n = 0
    while n % 256 or resident() < {heap} << 20:
        kept.append(make(n))
        n += 1
open("/dev/ttyS0", "w").write("IN USE " + kind + "\\n")
while True:
    time.sleep(3600)
"""


def initrd(directory: Path) -> tuple[Path, Path]:
    """Kernel and initial RAM disk: the lab's guest, with a Python and the work put over it."""
    files = build()
    python = str(Path(sys.executable).resolve())
    library = Path(os.__file__).parent
    found = {Path(python), *_libraries(python)}
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        found |= {Path(folder, name) for name in names if not name.endswith(".a")}
    for extension in (library / "lib-dynload").glob("*.so"):
        found |= set(_libraries(str(extension)))
    entries = [archive.file(str(path)[1:], path.read_bytes(), executable=True) for path in sorted(found)]
    start = f"#!{python}\n" + START.format(python=python)
    entries.append(archive.file("start", start.encode(), executable=True))
    entries.append(archive.file("work.py", WORK.format(heap=HEAP_MIB).encode()))
    folders_ = sorted({parent for entry in entries for parent in Path(entry.name).parents if str(parent) != "."})
    made = directory / "initrd"
    over = archive.pack([*(archive.directory(str(folder)) for folder in folders_), *entries])
    made.write_bytes(files.initrd.read_bytes() + over)
    return files.kernel, made


def disk(directory: Path) -> Path:
    """The image all guests read: files of this machine, each from the start of a block on."""
    made = directory / "disk"
    wanted = SHARED_MIB << 20
    with made.open("wb") as out:
        for path in sorted(Path("/usr/lib").rglob("*")):
            if path.is_symlink() or not stat.S_ISREG(path.stat().st_mode):
                continue
            data = path.read_bytes()
            out.write(data + bytes(-len(data) % _BLOCK))
            if out.tell() >= wanted:
                break
        out.truncate(wanted)
    return made


def machine(kernel: Path, ram_disk: Path, image: Path, seed: int, monitor: Path, *more: str) -> list[str]:
    """A guest's command line."""
    # The hash seed: Python would not start without one so soon after boot, when the kernel has no random numbers yet.
    words = f"console=ttyS0 quiet panic=-1 rdinit=/start PYTHONHASHSEED={seed} bench.seed=guest{seed}"
    # fmt: off
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
        "-accel", "tcg,tb-size=32", "-m", str(MEMORY_MIB), "-cpu", "qemu64", "-kernel", str(kernel),
        "-initrd", str(ram_disk), "-append", words,
        "-drive", f"if=none,id=d,file={image},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=d",
        "-qmp", f"unix:{monitor},server=on,wait=off", *more,
    ]
    # fmt: on


Process = subprocess.Popen[bytes]


def here(call: Callable[[], Process]) -> Process:
    return call()


@contextlib.contextmanager
def running(
    command: list[str], monitor: Path, place: Callable[[Callable[[], Process]], Process] = here
) -> Iterator[tuple[Process, Monitor]]:
    """The process and its monitor; neither is left afterwards. place: starts it where it shall be."""
    process = place(lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
    try:
        door = connected(monitor, process)
        try:
            yield process, door
        finally:
            door.close()
    finally:
        process.kill()
        process.wait()
        monitor.unlink(missing_ok=True)


def connected(path: Path, process: Process) -> Monitor:
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return Monitor(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"QEMU does not answer at {path}") from None
            time.sleep(0.02)


def saved(directory: Path, kernel: Path, ram_disk: Path, image: Path, seed: int) -> Path:
    """Boot a guest, wait until its memory is in use, and save it in a file."""
    console, state, monitor = directory / f"c{seed}", directory / f"guest{seed}", directory / f"m{seed}"
    command = machine(kernel, ram_disk, image, seed, monitor, "-serial", f"file:{console}")
    with running(command, monitor) as (process, door):
        end = time.monotonic() + BOOT_DEADLINE_S
        while not console.exists() or console.read_bytes().count(READY) < 3:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"guest {seed} did not come to use its memory: see {console}")
            time.sleep(0.2)
        door.execute("stop")
        door.execute("migrate-set-parameters", {"max-bandwidth": 0})
        with listening(directory / "state") as door_of_state:
            door.execute("migrate", {"uri": f"unix:{directory / 'state'}"})
            taken, _ = door_of_state.accept()
            with taken, state.open("wb") as out:
                while piece := taken.recv(1 << 20):
                    out.write(piece)
    console.unlink()
    return state


def restore(state: Path, door: Monitor, directory: Path) -> None:
    """Load a saved guest into a QEMU that waits for its state (`-incoming defer`). It stands still afterwards."""
    door.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    door.execute("migrate-incoming", {"uri": f"unix:{directory / 'state'}"})
    with socket.socket(socket.AF_UNIX) as out, state.open("rb") as saved_state:
        out.connect(str(directory / "state"))
        out.sendfile(saved_state)
    door.until_migration("completed")
    (directory / "state").unlink(missing_ok=True)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A unix socket to be connected to."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(1)
        made.settimeout(DEADLINE_S)
        try:
            yield made
        finally:
            path.unlink()


def _libraries(program: str) -> list[Path]:
    """What a program is linked with, its loader too. Two names of one file are both there."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = (word for line in told.splitlines() for word in line.split())
    return [Path(word) for word in words if word.startswith("/")]
