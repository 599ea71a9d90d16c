"""Nameless network namespaces: each lives as long as somebody holds it or runs in it, so none can be left behind."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from novacron.lab.failure import LabFailed

Result = TypeVar("Result")

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_TUN = Path("/dev/net/tun")
_TUN_NUMBER = (10, 200)
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace held open by this process. `fd` may be handed to whoever shall enter it."""

    def __init__(self) -> None:
        """:raise LabFailed: no privilege to make one."""
        self.fd = in_thread(_make)

    def run(self, call: Callable[[], Result]) -> Result:
        """Do `call` inside, in a thread of its own; sockets it opens and processes it starts stay inside."""

        def entered() -> Result:
            enter(self.fd)
            return call()

        return in_thread(entered)

    def run_as_node(self, call: Callable[[], Result]) -> Result:
        """Like `run`, with what a node sees of its hardware: /sys of this namespace, and /dev/net/tun open to all.

        The mounts are in a mount namespace of their own, which ends with the processes `call` starts.
        """

        def entered() -> Result:
            enter(self.fd)
            unshare(CLONE_NEWNS)
            show_hardware()
            return call()

        return in_thread(entered)

    def close(self) -> None:
        """Let go, once or again. It ends with the last process inside."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def enter(descriptor: int, kinds: int = CLONE_NEWNET) -> None:
    """Move the calling thread into namespaces, for good. :raise LabFailed: it may not.

    descriptor: of a network namespace, or a pidfd whose process' namespaces of those kinds are meant.
    """
    if kinds & CLONE_NEWNS:
        unshare(CLONE_FS)
    _checked(_libc.setns(descriptor, kinds), "enter a namespace")


def unshare(kinds: int) -> None:
    """Give the calling thread new namespaces of those kinds, for good. :raise LabFailed: it may not."""
    _checked(_libc.unshare(kinds), "make a namespace")


def show_hardware() -> None:
    """In the calling thread's new mount namespace: /sys of its network, and /dev/net/tun open to all."""
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    _mount("sysfs", "/sys", "sysfs")
    if not _TUN.stat().st_mode & stat.S_IWOTH:  # as udev does on every Debian; containers lack it
        _mount("tmpfs", str(_TUN.parent), "tmpfs")
        os.mknod(_TUN, stat.S_IFCHR | 0o600, os.makedev(*_TUN_NUMBER))
        _TUN.chmod(0o666)


def _make() -> int:
    unshare(CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int, doing: str) -> None:
    if result != 0:
        raise LabFailed.because(f"cannot {doing}: {os.strerror(ctypes.get_errno())}", "run the lab as root")


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target` in the calling thread's mount namespace: for what is called in `run_as_node`."""
    _mount(str(source), str(target), None, _MS_BIND)


def empty(directory: Path) -> None:
    """Show an empty directory in its place, likewise."""
    _mount("tmpfs", str(directory), "tmpfs")


def _mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    type_name = kind.encode() if kind else None
    _checked(_libc.mount(source.encode(), target.encode(), type_name, flags, None), f"mount {source} on {target}")


class _Outcome(Generic[Result]):
    value: Result
    error: BaseException | None = None


def in_thread(call: Callable[[], Result]) -> Result:
    """A namespace belongs to a thread; one that has entered another is never used again."""
    outcome: _Outcome[Result] = _Outcome()

    def run() -> None:
        try:
            outcome.value = call()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            outcome.error = error

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value
