"""A guardian: the parent of one guarded machine's process. At a deadline the kernel ends it, and the machine with it.

Started by path with nothing but the standard library, as every byte of it is there once for each machine:

    python -I -S guardian.py LISTENING ORDER TOLD          numbers of inherited descriptors

ORDER holds, parted by NULs: the first deadline (seconds of CLOCK_BOOTTIME), uid, gid (empty: stay who we are), then the
command. TOLD gets the pid of the machine's process. On LISTENING an agent sends deadlines (WORD: whether no later than
that is meant, or just then; seconds) and gets each back once the timer is set. It ends when its machine does, with the
same status, or 128 and the signal's number.

No process has to be scheduled for the end: the timer sends SIGKILL to this one, whose death sends it to its child.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence

CLOCK_BOOTTIME, TIMER_ABSTIME, PR_SET_PDEATHSIG, SIGEV_SIGNAL = 7, 1, 1, 0
MAX_ORDER_BYTES = 1 << 20
WORD = struct.Struct("<?d")
QUIET = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # meant for the machine, or for nobody

_libc = ctypes.CDLL(None, use_errno=True)


class _Event(ctypes.Structure):  # struct sigevent
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _Moment(ctypes.Structure):  # struct timespec
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Setting(ctypes.Structure):  # struct itimerspec
    _fields_ = (("interval", _Moment), ("value", _Moment))


class Timer:
    """A kernel timer that kills this process, armed. :raise OSError: there is none to be had."""

    def __init__(self, deadline_s: float) -> None:
        self._id = ctypes.c_void_p()
        event = _Event(None, signal.SIGKILL, SIGEV_SIGNAL)
        _checked(_libc.timer_create(CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._id)))
        self._deadline_s = deadline_s
        self.arm(deadline_s)

    def shorten(self, deadline_s: float) -> None:
        """No later than that, until it is armed again."""
        self.arm(min(self._deadline_s, deadline_s))

    def arm(self, deadline_s: float) -> None:
        """At that time from now on; one that has passed: at once."""
        whole_s = max(int(deadline_s), 0)
        value = _Moment(whole_s, max(int((deadline_s - whole_s) * 1e9), 1))  # all 0 would disarm it
        setting = _Setting(_Moment(0, 0), value)
        _checked(_libc.timer_settime(self._id, TIMER_ABSTIME, ctypes.byref(setting), None))
        self._deadline_s = deadline_s


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: Sequence[str]) -> None:
    listening, order, told = (int(number) for number in arguments)
    for descriptor in (listening, order, told):
        os.set_inheritable(descriptor, False)
    deadline, uid, gid, *command = os.read(order, MAX_ORDER_BYTES).decode().split("\0")
    os.close(order)
    timer = Timer(float(deadline))
    for number in QUIET:
        signal.signal(number, signal.SIG_IGN)
    pid = _begin(command, uid, gid)
    os.write(told, str(pid).encode())
    os.close(told)
    _serve(socket.socket(fileno=listening), timer, pid)


def _begin(command: list[str], uid: str, gid: str) -> int:
    """The child that has become the machine's process, and dies with this one."""
    parent = os.getpid()
    begun, beginning = os.pipe()  # closed by exec: nobody hears of a child that does not die with us yet
    pid = os.fork()
    if pid:
        os.close(beginning)
        os.read(begun, 1)
        os.close(begun)
        return pid
    try:
        for number in QUIET:
            signal.signal(number, signal.SIG_DFL)
        if uid:
            os.setgroups([])
            os.setgid(int(gid))
            os.setuid(int(uid))
        _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))  # after setuid, which clears it
        if os.getppid() == parent:
            os.execvp(command[0], command)  # noqa: S606 -- a list built from checked data; no shell
    except OSError as wrong:
        os.write(2, f"{command[0]}: {wrong}\n".encode())
    os._exit(127)


def _serve(listening: socket.socket, timer: Timer, pid: int) -> None:
    """Set the timer as told, until the machine ends."""
    child = os.pidfd_open(pid)
    agent: socket.socket | None = None
    waiting = b""
    while True:
        watched: list[int | socket.socket] = [child, listening, *([agent] if agent else [])]
        ready, _, _ = select.select(watched, [], [])
        if child in ready:
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if listening in ready:
            agent, waiting = _accepted(listening, agent), b""
        elif agent is not None:
            waiting, agent = _hear(agent, waiting, timer)


def _accepted(listening: socket.socket, before: socket.socket | None) -> socket.socket | None:
    """The newest agent's connection: an older agent has gone. Nobody but root and our own user may set the timer."""
    new, _ = listening.accept()
    _, uid, _ = struct.unpack("3i", new.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        new.close()
        return before
    if before is not None:
        before.close()
    return new


def _hear(agent: socket.socket, waiting: bytes, timer: Timer) -> tuple[bytes, socket.socket | None]:
    """What is left of what was said, and who still speaks."""
    try:
        said = agent.recv(64)
        waiting += said
        while len(waiting) >= WORD.size:
            word, waiting = waiting[: WORD.size], waiting[WORD.size :]
            at_most, deadline_s = WORD.unpack(word)
            (timer.shorten if at_most else timer.arm)(deadline_s)
            agent.sendall(word)
    except (OSError, OverflowError, ValueError):
        said = b""
    if said:
        return waiting, agent
    agent.close()
    return b"", None


if __name__ == "__main__":
    main(sys.argv[1:])
