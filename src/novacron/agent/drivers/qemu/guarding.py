"""QEMU under a guardian (agent.guardian), which the kernel ends at a deadline: started so, and given more time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from novacron.agent import guardian
from novacron.agent.drivers.qemu.process import Identity, Process, begin, boot_id, require_installed, ticks_of
from novacron.errors import DriverError

SOCKET = "guard.sock"
START_DEADLINE_S = 20.0
ARM_DEADLINE_S = 0.5
_ANY_BYTES = 32


class GuardianLine:
    """A connection to a guardian; its deadlines are set one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()

    async def arm(self, deadline_s: float, *, at_most: bool = False) -> bool:
        """Whether the kernel ends the machine at that time from now on, or (at_most) no later."""
        word, loop = guardian.WORD.pack(at_most, deadline_s), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ARM_DEADLINE_S), self._turn:
                await loop.sock_sendall(self._connection, word)
                heard = b""
                while not heard.endswith(word):  # answers to what nobody waited for come first
                    if not (said := await loop.sock_recv(self._connection, _ANY_BYTES * len(word))):
                        return False
                    heard += said
        except (TimeoutError, OSError):
            return False
        return True

    def close(self) -> None:
        self._connection.close()


async def spawn_guarded(
    argv: Sequence[str],
    *,
    deadline_s: float,
    listening: socket.socket,
    directory: Path,
    stderr: int,
    uid: int | None = None,
    gid: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """As `process.spawn`, under a guardian whose timer is set before the machine begins.

    :raise OSError: it cannot be executed. :raise DriverError: the guardian does not come up. Nothing is left then.
    """
    require_installed(argv[0])
    words = [repr(deadline_s), "" if uid is None else str(uid), "" if gid is None else str(gid), *argv]
    with contextlib.ExitStack() as opened:
        order = os.memfd_create("order")
        opened.callback(os.close, order)
        os.write(order, "\0".join(words).encode())
        os.lseek(order, 0, os.SEEK_SET)
        hears, tells = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        opened.callback(os.close, hears)
        with contextlib.ExitStack() as theirs:
            theirs.callback(os.close, tells)
            own = (listening.fileno(), order, tells)
            command = (sys.executable, "-I", "-S", guardian.__file__, *map(str, own))
            pid, pidfd = begin(command, directory=directory, stderr=stderr, pass_fds=[*pass_fds, *own])
        try:
            return await _told(hears, pid, pidfd)
        except BaseException:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222 -- it was killed, it ends now
            os.close(pidfd)
            raise


async def _told(hears: int, guardian_pid: int, guardian_pidfd: int) -> Process:
    """The machine's process, as its guardian names it."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(hears, heard.set)
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            await heard.wait()
    except TimeoutError:
        raise DriverError(f"the guardian did not come up within {START_DEADLINE_S:g} s") from None
    finally:
        loop.remove_reader(hears)
    said = os.read(hears, _ANY_BYTES)
    if not said:
        raise DriverError("the guardian ended before its machine began")
    pid = int(said)
    machine_pidfd = _one_of(guardian_pid, pid)
    if machine_pidfd is None:
        return Process(Identity(pid, 0, boot_id()), guardian_pidfd, outlived=True)
    try:
        ticks = ticks_of(pid)
    except OSError:
        ticks = 0  # it ends this moment
    return Process(Identity(pid, ticks, boot_id()), machine_pidfd, guardian=guardian_pidfd)


def _one_of(session: int, pid: int) -> int | None:
    """A pidfd of that process; None: it ended at once and was reaped, and its pid may be another session's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # The descriptor came first: if the session asked for afterwards is right, it names the right process.
    with contextlib.suppress(OSError):
        if os.getsid(pid) == session:
            return pidfd
    os.close(pidfd)
    return None
