"""QEMU as a process: started in a session of its own, known by pid + start time + boot, watched and ended by pidfd.

A pidfd names one process for ever, so a signal can never hit another that got the same pid. A process is dead when
its pidfd says so; that includes zombies nobody has reaped.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from novacron.agent.as_user import as_user

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_EXITED = "it exited with status {}"
IN_ORDER = _EXITED.format(0)
"""How one that left by itself, and was watched by its own parent, ended."""


class Identity(msgspec.Struct, frozen=True):
    """What tells this process from every other that ever had its pid."""

    pid: int
    start_ticks: int
    boot_id: str


class Process:
    """A living or just ended process. `ended` is done with one sentence: how it ended.

    guardian: a pidfd of its parent, a child of ours, which ends right after it and in the same way.
    outlived: `pidfd` is that parent's, for the process itself is gone.
    """

    def __init__(self, identity: Identity, pidfd: int, guardian: int = -1, *, outlived: bool = False) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._outlived = outlived
        self._guardian = guardian
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def is_over(self) -> bool:
        """Whether it has ended, asked of the kernel now: `alive` learns of it a turn of the loop later."""
        if not self.alive:
            return True
        asked = select.poll()
        asked.register(self._pidfd, select.POLLIN)
        return bool(asked.poll(0))

    def kill(self) -> None:
        """SIGKILL. Dead already: fine."""
        if self.alive:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    async def wait(self, deadline_s: float) -> bool:
        """Whether it has ended before the deadline."""
        await asyncio.wait({self.ended}, timeout=deadline_s)
        return self.ended.done()

    def let_go(self) -> None:
        """Watch it no longer; it runs on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._guardian >= 0:
            self._loop.remove_reader(self._guardian)
            os.close(self._guardian)
            self._guardian = -1
        self.ended.cancel()

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        words = _reap(self._pidfd, is_guardian=self._outlived)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._guardian >= 0:
            self._loop.add_reader(self._guardian, self._on_guardian_end)
        elif not self.ended.done():
            self.ended.set_result(words)

    def _on_guardian_end(self) -> None:
        """It has ended as its machine did a moment before, and is reaped; or it was ended, and its machine with it."""
        self._loop.remove_reader(self._guardian)
        words = _reap(self._guardian, is_guardian=True)
        os.close(self._guardian)
        self._guardian = -1
        if not self.ended.done():
            self.ended.set_result(words)


def spawn(
    argv: Sequence[str],
    *,
    directory: Path,
    stderr: int,
    uid: int | None = None,
    gid: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start it with no input, its words into `stderr`, no inherited descriptor but `pass_fds`, as uid:gid if given.

    It outlives the agent: no parent-death signal, no shared session. :raise OSError: it cannot be executed.
    """
    require_installed(argv[0])
    pid, pidfd = begin([*as_user(uid, gid), *argv], directory=directory, stderr=stderr, pass_fds=pass_fds)
    try:
        start_ticks = ticks_of(pid)
    except OSError:
        start_ticks = 0  # reaped by nobody but us, so this cannot be; a process without /proc cannot be adopted
    return Process(Identity(pid, start_ticks, boot_id()), pidfd)


def require_installed(program: str) -> None:
    """:raise FileNotFoundError: it is not."""
    if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
        raise FileNotFoundError(f"{program} is not installed")


def begin(argv: Sequence[str], *, directory: Path, stderr: int, pass_fds: Sequence[int]) -> tuple[int, int]:
    """The pid and a pidfd of a child as `spawn` describes it, which whoever holds the pidfd watches and reaps."""
    started = subprocess.Popen(  # noqa: S603 -- argv is a list built from checked data; no shell
        argv,
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
        umask=0o077,
    )
    pidfd = os.pidfd_open(started.pid)
    started.returncode = 0  # Popen must neither watch nor reap
    return started.pid, pidfd


def find(identity: Identity) -> Process | None:
    """The process with that identity, if it still runs (a zombie does not)."""
    if identity.pid <= 0 or identity.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError:
        return None
    # The descriptor came first: if the start time read afterwards is right, it names the right process.
    try:
        right = ticks_of(identity.pid) == identity.start_ticks
    except OSError:
        right = False
    if not right:
        os.close(pidfd)
        return None
    return Process(identity, pidfd)


def find_in(directory: Path, vm_id: str) -> Identity | None:
    """A process that works in `directory` and was given `-uuid vm_id`: one whose agent died before noting its pid."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not (entry / "cwd").samefile(directory):
                continue
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if b"-uuid" in argv and argv[argv.index(b"-uuid") + 1] == vm_id.encode():
                return Identity(int(entry.name), ticks_of(int(entry.name)), boot_id())
        except (OSError, IndexError):
            continue  # it ended, or is not ours to look at
    return None


def boot_id() -> str:
    """This boot of this kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def ticks_of(pid: int) -> int:
    """When the process started, in clock ticks since boot. :raise OSError: it is gone, or a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _reap(pidfd: int, *, is_guardian: bool = False) -> str:
    """How it ended; its own parent alone is told. is_guardian: it says by its status which signal ended its machine."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        result = None
    if result is None:
        return "it ended"
    if is_guardian and result.si_code == os.CLD_EXITED and result.si_status > 128:
        return f"it was ended by signal {signal.Signals(result.si_status - 128).name}"
    if result.si_code == os.CLD_EXITED:
        return _EXITED.format(result.si_status)
    return f"it was ended by signal {signal.Signals(result.si_status).name}"
