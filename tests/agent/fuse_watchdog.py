"""A watchdog made of FUSE, and of the host it resets a pid namespace: it takes the kernel's own ioctls, on a real file.

    python -m tests.agent.fuse_watchdog DIRECTORY VICTIM LEAST OPTIONS

DIRECTORY/watchdog is the device. VICTIM: the pid it kills when it is not fed in time; a line with another on stdin is
another, as of a host that boots; 0: none yet. LEAST: the shortest timeout it
takes, in seconds. OPTIONS: WDIOF_* as a number. What happens is told on stdout, a word a line; it ends with its stdin.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import struct
import sys
import time
from enum import IntEnum

from novacron.agent import keeper

HEAD, ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ROOT, FILE = 1, 2
ENOENT, ENOSYS, ENOTTY = 2, 38, 25
DIRECT_IO = 1
NAME = b"made of fuse"

_libc = ctypes.CDLL(None, use_errno=True)


class Op(IntEnum):
    """What the kernel asks of a file system, as far as it is answered here."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    WRITE = 16
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    IOCTL = 39
    MANY_FORGOTTEN = 42


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _attr(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o700 if node == ROOT else stat.S_IFREG | 0o600
    return ATTR.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0)


class Emulator:
    """One device; nobody has opened it yet."""

    def __init__(self, channel: int, victim: int, least_s: int, options: int) -> None:
        self._channel, self._victim, self._least_s, self._options = channel, victim, least_s, options
        self._timeout_s = 60
        self._fed_s: float | None = None
        self._may_close = False

    def run(self) -> None:
        while True:
            left_s = None
            if self._fed_s is not None:
                left_s = max(self._fed_s + self._timeout_s - time.monotonic(), 0.0)
            ready, _, _ = select.select([self._channel, 0], [], [], left_s)
            if 0 in ready:
                if not (line := os.read(0, 64)):
                    return
                self._victim, self._fed_s = int(line), None
            if self._channel in ready:
                self._take()
            elif left_s is not None and not ready:
                self._fed_s = None
                if self._victim:
                    with contextlib.suppress(ProcessLookupError):  # it is off already
                        os.kill(self._victim, signal.SIGKILL)
                say("reset")

    def _take(self) -> None:
        try:
            frame = os.read(self._channel, 1 << 17)
        except OSError:  # the request was taken back
            return
        _, opcode, unique, node, *_ = HEAD.unpack_from(frame)
        if opcode in (Op.FORGET, Op.MANY_FORGOTTEN):
            return
        error, body = self._answer(opcode, node, frame[HEAD.size :])
        with contextlib.suppress(OSError):
            os.write(self._channel, ANSWER.pack(ANSWER.size + len(body), -error, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        match opcode:
            case Op.INIT:
                return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 4, 3, 4096, 1, 0, 0, 0)
            case Op.LOOKUP:
                found = body.rstrip(b"\0") == b"watchdog"
                return (0, struct.pack("<QQQQII", FILE, 0, 1, 1, 0, 0) + _attr(FILE)) if found else (ENOENT, b"")
            case Op.GETATTR:
                return 0, struct.pack("<QII", 1, 0, 0) + _attr(node)
            case Op.OPEN:  # from here on it must be fed
                self._fed_s, self._may_close = time.monotonic(), False
                say("opened")
                return 0, struct.pack("<QIi", 1, DIRECT_IO, 0)
            case Op.WRITE:
                size = struct.unpack_from("<QQI", body)[2]
                self._may_close = body[40 : 40 + size].endswith(b"V")
                return 0, struct.pack("<II", size, 0)
            case Op.FLUSH:
                return 0, b""
            case Op.RELEASE:
                self._close()
                return 0, b""
            case Op.IOCTL:
                return self._control(body)
        return ENOSYS, b""

    def _close(self) -> None:
        if self._may_close and self._options & keeper.CAN_CLOSE:
            self._fed_s = None
            say("closed")
        else:
            say("lost")

    def _control(self, body: bytes) -> tuple[int, bytes]:
        _, _, command, _, _, _ = struct.unpack_from("<QIIQII", body)
        done = struct.pack("<iIII", 0, 0, 0, 0)
        if command == keeper.GETSUPPORT:
            return 0, done + keeper.INFO.pack(self._options, 0, NAME)
        if command == keeper.KEEPALIVE:
            self._fed_s = time.monotonic()
            say("fed")
            return 0, done + bytes(4)
        if command == keeper.SETTIMEOUT:
            self._timeout_s = max(keeper.WHOLE.unpack_from(body, 32)[0], self._least_s)
            self._fed_s = time.monotonic()
            return 0, done + keeper.WHOLE.pack(self._timeout_s)
        return ENOTTY, b""


def main() -> None:
    directory, victim, least, options = sys.argv[1:]
    channel = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    wishes = f"fd={channel},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"watchdog", directory.encode(), b"fuse", 0, wishes) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        say("ready")
        Emulator(channel, int(victim), int(least), int(options)).run()
    finally:
        _libc.umount2(directory.encode(), 2)  # MNT_DETACH
        os.close(channel)


if __name__ == "__main__":
    main()
