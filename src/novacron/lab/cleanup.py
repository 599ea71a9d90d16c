"""End what a lab left: its processes first, then its files. Namespaces and what is in them go with the last process.

A process is the lab's when it works inside the lab's directory and runs a command the lab wrote down, or when it is a
QEMU or a dnsmasq that works in there or has files from there: only the lab starts those. Others who look around in
there are left alone. Every signal goes to a pidfd whose process was looked at again after the descriptor was opened.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from novacron.lab import record
from novacron.lab.failure import LabFailed

GRACE_S = 5.0
KILL_S = 10.0
_GONE = " (deleted)"


Told = tuple[list[str], bool]
"""A process: its argument list, and whether it works inside the lab's directory."""


def clean(path: Path) -> int:
    """End what is left of the lab in `path` and empty it; the number of processes ended. The lab must be held.

    :raise LabFailed: a process does not end.
    """
    commands = record.read(path).commands

    def is_ours(told: Told) -> bool:
        return told[1] and told[0] in commands

    def is_machine(told: Told) -> bool:
        argv, inside = told
        files = (word.removeprefix("--conf-file=") for word in argv)
        of_a_node = Path(argv[0]).name.startswith("qemu-") or Path(argv[0]).name == "dnsmasq"
        return of_a_node and (inside or any(file.startswith(f"{path}/") for file in files))

    # Agents before machines: an agent that lives would see its machine die and might start something.
    ended = _end_all(is_ours, path) + _end_all(is_machine, path)
    for left in path.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    return ended


def end_holder(path: Path, known_by: list[str]) -> int:
    """End who holds the lab in `path`, a process whose first arguments are these: kindly, and else at once.

    :raise LabFailed: it does not end.
    """
    return _end_all(lambda told: told[0][1 : 1 + len(known_by)] == known_by, path)


def _end_all(ours: Callable[[Told], bool], path: Path) -> int:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(opened) for opened in _processes(ours, path)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            if _ended(found, GRACE_S if number == signal.SIGTERM else KILL_S):
                return len(found)
    raise LabFailed.because(f"a process of the lab in {path} does not end", "look at it with ps")


def _processes(ours: Callable[[Told], bool], path: Path) -> Iterator[contextlib.AbstractContextManager[int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _matches(entry, ours, path):
            try:
                descriptor = os.pidfd_open(int(entry.name))
            except ProcessLookupError:
                continue
            if _matches(entry, ours, path):
                yield _closing(descriptor)
            else:
                os.close(descriptor)


def _matches(entry: Path, ours: Callable[[Told], bool], path: Path) -> bool:
    try:
        inside = Path(str((entry / "cwd").readlink()).removesuffix(_GONE)).is_relative_to(path)
        return ours(((entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"), inside))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # it ended meanwhile, or belongs to somebody else


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ended(descriptors: list[int], within_s: float) -> bool:
    """Whether all have ended in time. A pidfd becomes readable when its process ends, reaped or not."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    left, end = set(descriptors), time.monotonic() + within_s
    while left and (rest := end - time.monotonic()) > 0:
        for descriptor, _ in waiting.poll(rest * 1e3):
            waiting.unregister(descriptor)
            left.discard(descriptor)
    return not left
