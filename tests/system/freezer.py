"""A whole host that stands still: the kernel's freezer over every process of a lab's node.

cgroup v1 is what a stopped host is like: a process that is killed meanwhile ends when it goes on. Under cgroup v2 it
ends at once, so that there the window after a thaw has nothing in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.lab.node import Node

V1 = Path("/sys/fs/cgroup/freezer")
V2 = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
WITHIN_S = 10.0
LOOK_S = 0.005


class Kind(NamedTuple):
    """What is written where to stop a group, to let it go on, and what its state then reads."""

    root: Path
    file: str
    stop: str
    go: str
    state_file: str
    stopped: str


def kind() -> Kind | None:
    """This machine's freezer; None: it has none."""
    if (V1 / "cgroup.procs").exists():
        return Kind(V1, "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN")
    for root in V2:
        if (root / "cgroup.controllers").exists():
            return Kind(root, "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1")
    return None


@contextlib.contextmanager
def standing(host: Node) -> Iterator[None]:
    """No process of that node is given any time while the block runs. Its group is gone afterwards."""
    found = kind()
    assert found is not None, "this machine has no freezer"
    group = found.root / f"nc-story-{os.getpid()}-{host.number}"
    group.mkdir()
    try:
        _take_in(host, group)
        (group / found.file).write_text(found.stop)
        _until(lambda: found.stopped in (group / found.state_file).read_text(), "it does not stand still")
        yield
    finally:
        (group / found.file).write_text(found.go)
        _let_out(found.root, group)


def _take_in(host: Node, group: Path) -> None:
    """All of the node's processes, also those that are begun meanwhile; their children are born in the group."""
    assert host.pid is not None, f"{host.name} is off"
    own = Path(f"/proc/{host.pid}/ns/pid").stat().st_ino
    taken: set[int] = set()
    while new := _of(own) - taken:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid))
        taken |= new


def _of(own: int) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns/pid").stat().st_ino == own:
                found.add(int(entry.name))
    return found


def _let_out(root: Path, group: Path) -> None:
    def is_gone() -> bool:
        with contextlib.suppress(FileNotFoundError):
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    _until(is_gone, "its group does not go")


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end_s, otherwise
        time.sleep(LOOK_S)
