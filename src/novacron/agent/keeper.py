"""The watchdog's keeper: feeds the device that resets this host, unless a guarded machine outlives its deadline.

It outlives the agent, as guardians do, and like them it is started by path with nothing but the standard library:

    python -I -S keeper.py DEVICE TIMEOUT DEADLINE LISTENING LOCK TOLD        the last three: inherited descriptors

TOLD gets one line of JSON: what the device is, or why it is not taken. On LISTENING an agent sends words and gets each
back with what came of it. Whoever is guarded holds a read lock on LOCK, in every process of it (`hold`): the kernel
lets go of that once they have really ended, and not before, whatever they are stuck in.

Once opened, a device resets the host unless it is fed; it is closed in order only when nothing guarded lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

KEEPALIVE, SETTIMEOUT, GETSUPPORT = 0x80045705, 0xC0045706, 0x80285700  # WDIOC_*, linux/watchdog.h
CAN_SET_TIMEOUT, CAN_CLOSE = 0x0080, 0x0100  # WDIOF_SETTIMEOUT, WDIOF_MAGICCLOSE
INFO = struct.Struct("=II32s")  # struct watchdog_info
WHOLE = struct.Struct("=i")

ARM, AT_MOST, TIMEOUT, END, STAY = range(5)
WORD = struct.Struct("<Bd")
"""What an agent says. ARM, AT_MOST: feed until that time of CLOCK_BOOTTIME, or no later. TIMEOUT: so long unfed until
the reset; answered with what the device then has. END: close it once nothing guarded lives; answered with 1, or 0 where
the device cannot be closed. STAY: do not.
"""

LOCK = "guarded.lock"
"""The lock's name, in the directory of all machines."""

FEEDS = 5
"""So many times within the device's timeout it is fed."""
_FLOCK = struct.Struct("hhqqi4x")
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def hold(path: str | os.PathLike[str]) -> int:
    """A descriptor by which whoever inherits it counts as guarded for as long as it is open anywhere."""
    number = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.fcntl(number, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except BaseException:
        os.close(number)
        raise
    return number


def is_held(lock: int) -> bool:
    """Whether anything guarded lives. Nothing is locked by asking."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def may_feed(deadline_s: float, now_s: float, *, lives: bool) -> bool:
    """Not while anything guarded lives beyond its deadline: agent.self_fence.may_feed, by which the simulator goes."""
    return not lives or now_s < deadline_s


class Device:
    """An open watchdog: the host is reset `timeout_s` after it was last fed. :raise OSError: it is none, or in use."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        options, _, name = INFO.unpack(fcntl.ioctl(self._number, GETSUPPORT, bytes(INFO.size)))
        self.name = name.partition(b"\0")[0].decode(errors="replace")
        self.sets_timeout = bool(options & CAN_SET_TIMEOUT)
        self.closes = bool(options & CAN_CLOSE) and not _never_stops(path)
        self.timeout_s = 1  # until it is set: fed often enough for any
        self.feed()

    def set_timeout(self, timeout_s: int) -> int:
        """Ask for it; what the device took, which may be more. :raise OSError: it does not take that."""
        said = fcntl.ioctl(self._number, SETTIMEOUT, WHOLE.pack(timeout_s))
        self.timeout_s = max(WHOLE.unpack(said)[0], 1)
        self.feed()
        return self.timeout_s

    def feed(self) -> None:
        fcntl.ioctl(self._number, KEEPALIVE, WHOLE.pack(0))

    def close(self) -> None:
        """In order: the host is not reset."""
        os.write(self._number, b"V")
        os.close(self._number)


def _never_stops(path: str) -> bool:
    """Whether its driver was loaded with nowayout: then it goes on after any close."""
    name = Path(path).resolve().name
    try:
        said = Path("/sys/class/watchdog", "watchdog0" if name == "watchdog" else name, "nowayout").read_bytes()
        return said.strip() == b"1"
    except OSError:
        return False


class Keeper:
    """Feeds until told to end. deadline_s: until it is told another."""

    def __init__(self, device: Device, listening: socket.socket, lock: int, deadline_s: float) -> None:
        self._device = device
        self._listening = listening
        self._lock = lock
        self._deadline_s = deadline_s
        self._agent: socket.socket | None = None
        self._waiting = b""
        self._ending = False
        signal.signal(signal.SIGTERM, self._end)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _end(self, *_: object) -> None:
        self._ending = True

    def run(self) -> None:
        while True:
            lives = is_held(self._lock)
            if self._ending and self._device.closes and not lives:
                self._device.close()
                return
            if may_feed(self._deadline_s, time.clock_gettime(time.CLOCK_BOOTTIME), lives=lives):
                self._device.feed()
            self._hear(self._device.timeout_s / FEEDS)

    def _hear(self, for_s: float) -> None:
        watched: list[socket.socket] = [self._listening, *([self._agent] if self._agent else [])]
        ready, _, _ = select.select(watched, [], [], for_s)
        if self._listening in ready:
            self._accept()
        elif self._agent is not None and self._agent in ready:
            self._heed(self._agent)

    def _accept(self) -> None:
        """The newest agent's connection: an older agent has gone. Nobody but root and our own user is heard."""
        new, _ = self._listening.accept()
        _, uid, _ = struct.unpack("3i", new.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            new.close()
            return
        if self._agent is not None:
            self._agent.close()
        self._agent, self._waiting = new, b""

    def _heed(self, agent: socket.socket) -> None:
        try:
            said = agent.recv(64)
            self._waiting += said
            while len(self._waiting) >= WORD.size:
                word, self._waiting = self._waiting[: WORD.size], self._waiting[WORD.size :]
                kind, value = WORD.unpack(word)
                agent.sendall(WORD.pack(kind, self._done(kind, value)))
        except OSError:
            said = b""
        if not said:
            agent.close()
            self._agent = None

    def _done(self, kind: int, value: float) -> float:
        """Heed one word; what it is answered with."""
        if kind == TIMEOUT:
            return self._timeout(int(value))
        if kind == ARM:
            self._deadline_s = value
        elif kind == AT_MOST:
            self._deadline_s = min(self._deadline_s, value)
        elif kind in (END, STAY):
            self._ending = kind == END
            return float(self._device.closes)
        return value

    def _timeout(self, timeout_s: int) -> float:
        try:
            return float(self._device.set_timeout(timeout_s))
        except OSError:
            return float("inf")


def main(arguments: Sequence[str]) -> None:
    path, timeout, deadline, *numbers = arguments
    listening, lock, told = map(int, numbers)
    for number in (listening, lock, told):
        os.set_inheritable(number, False)
    _come_first()
    try:
        device = Device(path)
    except OSError as wrong:
        _tell(told, {"error": f"{path} cannot be opened as a watchdog: {wrong.strerror}"})
        return
    why = _refusal(device, path, int(timeout))
    if why and device.closes:
        device.close()
    what = {"name": device.name, "timeout_s": device.timeout_s, "closes": device.closes}
    _tell(told, {"error": why} if why else what)
    if not why or not device.closes:  # one that cannot be closed is fed for ever: whoever refuses it wants no reset
        Keeper(device, socket.socket(fileno=listening), lock, float("inf") if why else float(deadline)).run()


def _refusal(device: Device, path: str, timeout_s: int) -> str:
    if not device.sets_timeout:
        return f"{path} ({device.name}) has a timeout that cannot be set"
    try:
        taken_s = device.set_timeout(timeout_s)
    except OSError as wrong:
        return f"{path} ({device.name}) takes no timeout of {timeout_s} s: {wrong.strerror}"
    if taken_s > timeout_s:
        return f"{path} ({device.name}) resets after {taken_s} s at the least, which is later than {timeout_s} s"
    return ""


def _come_first() -> None:
    """Before everybody else where that is allowed, and never to be read back from a disk: else a busy host is reset."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(b"-1000")
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE)


def _tell(told: int, what: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        os.write(told, json.dumps(what).encode() + b"\n")
    os.close(told)


if __name__ == "__main__":
    main(sys.argv[1:])
