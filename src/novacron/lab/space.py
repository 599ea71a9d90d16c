"""What makes a node a host of its own: processes, mounts, name and boot of its own, all of which end with PID 1."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from novacron.lab import init
from novacron.lab.failure import LabFailed
from novacron.lab.namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    Namespace,
    bind,
    enter,
    in_thread,
    show_hardware,
    unshare,
)

Result = TypeVar("Result")

OWN = CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS
ALL = OWN | CLONE_NEWNET
END_S = 20.0


def command(directory: Path) -> list[str]:
    """What PID 1 of the node in `directory` is started as."""
    return [sys.executable, "-I", "-S", str(Path(init.__file__)), str(_boot_id(directory))]


def _boot_id(directory: Path) -> Path:
    return directory / "boot_id"


class Space:
    """A node that is powered on, in the network `namespace`. It ends with this process, whatever ends that."""

    def __init__(self, namespace: Namespace, name: str, directory: Path, mounts: Mapping[Path, Path]) -> None:
        """mounts: what the node sees at paths where others see something else.

        :raise LabFailed: not root, or PID 1 does not start.
        """
        _boot_id(directory).write_text(f"{uuid.uuid4()}\n")
        self._init = in_thread(lambda: _begin(namespace, name, directory, mounts))
        self._pidfd = os.pidfd_open(self._init.pid)
        if self._init.stdout is None or self._init.stdout.readline() != b"ready\n":
            self.end()
            raise LabFailed.because(f"the first process of {name} did not start")

    @property
    def pid(self) -> int:
        """Of its first process, as this machine counts."""
        return self._init.pid

    @property
    def lives(self) -> bool:
        return self._init.poll() is None

    def run(self, call: Callable[[], Result]) -> Result:
        """Do `call` inside, in a thread of its own; processes it starts live and die with the node."""

        def entered() -> Result:
            enter(self._pidfd, ALL)
            return call()

        return in_thread(entered)

    def kill(self) -> None:
        """Cut its power: everything inside is dead very soon. `end` waits for that."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and wait until nothing lives inside. Who started processes in here waits for them first.

        :raise LabFailed: something does not end.
        """
        self.kill()
        try:
            self._init.wait(END_S)
        except subprocess.TimeoutExpired:
            raise LabFailed.because("a process that was started in a node was never waited for") from None
        for pipe in (self._init.stdin, self._init.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._pidfd)


def _begin(namespace: Namespace, name: str, directory: Path, mounts: Mapping[Path, Path]) -> subprocess.Popen[bytes]:
    enter(namespace.fd)
    unshare(OWN)
    show_hardware()
    for target, source in mounts.items():
        bind(source, target)
    socket.sethostname(name)
    return subprocess.Popen(  # noqa: S603 - a list of our own
        command(directory), cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def host_pid(first: int, pid: int) -> int | None:
    """What this machine calls the process that is `pid` in the node whose first process is `first`.

    None: there is none.
    """
    own = Path(f"/proc/{first}/ns/pid").stat().st_ino
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/pid").stat().st_ino == own and _innermost(entry) == pid:
                return int(entry.name)
        except OSError:
            continue
    return None


def _innermost(entry: Path) -> int:
    for line in (entry / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return 0
