"""Lays a wire into a node's link: a process that carries its frames late and loses some. The kernel here has no netem.

    fabric0 ── w1 (tap) ── wire ── n1 ══ up0 ── br0 of node-1

Laying and lifting it interrupts the link for some milliseconds and no end sees a carrier go. When the wire dies the
link is silent.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import subprocess
from pathlib import Path

from pyroute2 import IPRoute

from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import cache_dirs
from novacron.lab.network import FABRIC_BRIDGE, Fabric, index_of, port_of
from novacron.lab.record import LabDir

SOURCE = Path(__file__).with_name("wire.c")
_QUEUE_FRAMES = 10_000
_RECEIVE_BYTES = 32 << 20
_COMPILE_S = 60
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_RCVBUFFORCE = 33
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def end_of(number: int) -> str:
    """The bridge's end of the wire of node `number`."""
    return f"w{number}"


class Wire:
    """A living wire. One that has been laid carries at once, as well as a wire of no length."""

    def __init__(self, fabric: Fabric, number: int, lab: LabDir, seed: int) -> None:
        """:raise LabFailed: no C compiler, or no such link."""
        self._fabric, self._number = fabric, number
        program = build()
        near, far = fabric.fabric.run(lambda: (_listen(port_of(number)), _tap(end_of(number))))
        try:
            command = [str(program), str(near.fileno()), str(far), str(seed)]
            lab.note(command)
            self._process = subprocess.Popen(  # noqa: S603 - a list of our own
                command,
                cwd=lab.path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(near.fileno(), far),
                start_new_session=True,
            )
        finally:
            near.close()
            os.close(far)
        try:
            self.set(0, 0, 0)
            fabric.fabric.run(self._splice)
        except BaseException:
            self.lift()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def set(self, latency_ms: float, jitter_ms: float, loss: float) -> None:
        """From now on so late, give or take so much, and this share of frames lost. :raise LabFailed: it is dead."""
        if self._process.stdin is None or self._process.stdout is None:
            raise LabFailed.because("a wire without pipes")  # never: it was started with them
        try:
            self._process.stdin.write(f"{latency_ms * 1e3:.0f} {jitter_ms * 1e3:.0f} {loss * 1e6:.0f}\n".encode())
            self._process.stdin.flush()
        except OSError as gone:
            raise LabFailed.because(f"the wire of node-{self._number} has ended: {gone}") from gone
        if self._process.stdout.readline() != b"done\n":
            raise LabFailed.because(f"the wire of node-{self._number} has ended")

    def lift(self) -> None:
        """End it, and join the link without it. Its tap goes with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._fabric.fabric.run(self._join)

    def _splice(self) -> None:
        port, end = port_of(self._number), end_of(self._number)
        for name in (port, end):  # neither is anybody's address
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        with IPRoute() as ip:
            ip.link("set", index=index_of(ip, port), master=0)
            ip.link("set", index=index_of(ip, end), master=index_of(ip, FABRIC_BRIDGE), state="up")

    def _join(self) -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=port_of(self._number)):  # none: the node is gone
                ip.link("set", index=index, master=index_of(ip, FABRIC_BRIDGE))


def _listen(port: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    try:
        made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        made.bind((port, 0))
    except OSError as wrong:
        made.close()
        raise LabFailed.because(f"cannot listen on {port}: {wrong}") from wrong
    return made


def _tap(name: str) -> int:
    made = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        with IPRoute() as ip:
            ip.link("set", index=index_of(ip, name), txqlen=_QUEUE_FRAMES)
    except BaseException:
        os.close(made)
        raise
    return made


def build(cache_dir: Path | None = None) -> Path:
    """The compiled program, built once into `cache_dir` (None: the project's own cache).

    :raise LabFailed: no compiler, no cache that can be written, or the compiler refuses.
    """
    places = [cache_dir] if cache_dir else cache_dirs()
    name = f"wire-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    for place in places:
        if (place / name).is_file():
            return place / name
    for place in places:
        fresh = place / f".{name}.{os.getpid()}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            _compile(fresh)
            return fresh.replace(place / name)
        except PermissionError:
            continue
        finally:
            fresh.unlink(missing_ok=True)
    raise LabFailed.because("no cache directory can be written", "set XDG_CACHE_HOME to a directory of yours")


def _compile(program: Path) -> None:
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE)]
    try:
        done = subprocess.run(  # noqa: S603 - a list of our own
            command, capture_output=True, text=True, timeout=_COMPILE_S, check=False
        )
    except FileNotFoundError as missing:
        raise LabFailed.because("a link can be late or lossy only with a C compiler", "run make setup") from missing
    if done.returncode:
        raise LabFailed.because(f"the wire does not compile: {done.stderr.strip()}")
