"""Nodes and guests for tests of networks: namespaces joined by veth, real kernels, and guests that are taps."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from novacron.agent.network import tap
from novacron.agent.network.dnsmasq import Dnsmasq
from novacron.agent.network.memory import Memory
from novacron.agent.network.names import overlay_tap
from novacron.agent.network.overlay import Overlay
from novacron.agent.network.travel import Movements
from novacron.clock import SystemClock
from novacron.lab.namespaces import Namespace, enter
from novacron.model.machine import NetworkKind, Nic
from novacron.model.network import Location, NetworkSpec, NetworkState, PortFilter
from novacron.wire.network import NetworkApply

NETWORK = "01890000-0000-7000-8000-00000000aa01"
VM = "01890000-0000-7000-8000-0000000000%02x"
HEADER = bytes(10)  # of virtio-net, on every frame of a node's tap
CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)
Result = TypeVar("Result")


def spec(**more: Any) -> NetworkSpec:
    return NetworkSpec(**{"id": NETWORK, "vni": 77, "ipv4": "10.5.0.0/24", "ipv6": "fd05::/64", **more})


def nic(number: int, network_id: str = NETWORK, **more: Any) -> Nic:
    addresses = (f"10.5.0.{number}", f"fd05::{number:x}")
    given = {"addresses": addresses, "filter": PortFilter(addresses=more.get("addresses", addresses)), **more}
    return Nic(
        id=f"01890000-0000-7000-8000-0000000000e{number}",
        mac=f"52:54:00:00:00:0{number}",
        network=NetworkKind.OVERLAY,
        network_id=network_id,
        **given,
    )


def place(card: Nic, node: Node, generation: int = 1) -> Location:
    return Location(mac=card.mac, vm_id=VM % 1, generation=generation, endpoint=node.address, addresses=card.addresses)


def tool(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


class Node:
    """A node's agent as far as networks go, with a loop of its own inside its namespace."""

    def __init__(self, number: int, root: Path, prefix: str) -> None:
        self.address = f"{prefix}{number}"
        self.namespace = Namespace()
        self.root = root / f"node-{number}"
        self.root.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"node-{number}")
        self._thread.start()
        self.start()

    def start(self) -> None:
        """Its agent, anew; the one before ends in order."""
        if hasattr(self, "movements"):
            self.do(self.movements.close())
            self.overlay.close()
        clock = SystemClock()
        self.overlay = Overlay(Memory(self.root / "networks"), Dnsmasq(self.root / "run"), self.address, clock)
        self.movements = Movements(self.overlay, clock)

    def _run(self) -> None:
        enter(self.namespace.fd)
        assert _libc.unshare(CLONE_NEWNS) == 0
        tool("mount", "--make-rprivate", "/")
        tool("mount", "-t", "sysfs", "sysfs", "/sys")
        tool("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
        tool("mknod", "-m", "666", "/dev/net/tun", "c", "10", "200")
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, work: Callable[[], Result]) -> Result:
        async def called() -> Result:
            return work()

        return self.do(called())

    def run(self, *words: str) -> str:
        return self.call(lambda: tool(*words))

    def apply(self, state: NetworkState) -> None:
        self.do(self.overlay.apply(NetworkApply(state=state)))

    def close(self) -> None:
        for network_id in list(self.overlay._known):
            self.do(self.overlay._servers.end(network_id))
        self.do(self.movements.close())
        self.overlay.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.namespace.close()


class Guest:
    """The machine's end of a card: frames as they are, or a kernel's own network on top (`with_kernel`)."""

    def __init__(self, node: Node, card: Nic, networks: tuple[NetworkSpec, ...] = ()) -> None:
        node.do(node.overlay.plug(card, None, networks))
        self.card = card
        self.node = node
        self.fd = node.call(lambda: open_tap(overlay_tap(card.id), tap.IFF_VNET_HDR))
        self.namespace: Namespace | None = None
        self._stop, self._stopped = os.pipe()
        self._pump: threading.Thread | None = None

    def send(self, frame: bytes) -> None:
        os.write(self.fd, HEADER + frame)

    def frames(self, within_s: float = 0.3) -> Iterator[bytes]:
        """What arrives, until nothing does for so long."""
        while select.select([self.fd], [], [], within_s)[0]:
            yield os.read(self.fd, 1 << 16)[len(HEADER) :]

    def hears(self, wanted: Callable[[bytes], bool], within_s: float = 3.0) -> bytes | None:
        end = time.monotonic() + within_s
        while (left := end - time.monotonic()) > 0 and select.select([self.fd], [], [], left)[0]:
            frame = os.read(self.fd, 1 << 16)[len(HEADER) :]
            if wanted(frame):
                return frame
        return None

    def with_kernel(self, *addresses: str, mtu: int = 1450) -> Namespace:
        """A namespace whose eth0 is the card."""
        inner = Namespace()

        def lay() -> int:
            device = open_tap("eth0", 0)
            tool("ip", "link", "set", "lo", "up")
            tool("ip", "link", "set", "eth0", "address", self.card.mac, "mtu", str(mtu), "up")
            for address in addresses:
                tool("ip", "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
            return device

        device = inner.run(lay)
        self.namespace = inner
        self._pump = threading.Thread(target=self._copy, args=(device,))
        self._pump.start()
        return inner

    def _copy(self, device: int) -> None:
        while True:
            ready = select.select([self.fd, device, self._stop], [], [])[0]
            if self._stop in ready:
                os.close(device)
                return
            with contextlib.suppress(OSError):
                if self.fd in ready:
                    os.write(device, os.read(self.fd, 1 << 16)[len(HEADER) :])
                if device in ready:
                    os.write(self.fd, HEADER + os.read(device, 1 << 16))

    def run(self, *words: str) -> str:
        assert self.namespace is not None
        return self.namespace.run(lambda: tool(*words))

    def pings(self, address: str, within_s: float = 5.0) -> bool:
        """Whether one echo comes back."""
        assert self.namespace is not None
        words = ["busybox", "ping6" if ":" in address else "ping", "-c", "1", "-W", "1", address]
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self.namespace.run(lambda: subprocess.run(words, capture_output=True)).returncode == 0:
                return True
        return False

    def stop(self) -> None:
        """The machine ends; its card stays plugged in."""
        os.write(self._stopped, b"x")
        if self._pump is not None:
            self._pump.join()
        for handle in (self.fd, self._stop, self._stopped):
            os.close(handle)
        if self.namespace is not None:
            self.namespace.close()


def open_tap(name: str, flags: int) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), tap.IFF_TAP | tap.IFF_NO_PI | flags)
    fcntl.ioctl(handle, tap.TUNSETIFF, request)
    return handle


class Site:
    """Nodes whose tunnels reach each other, and what a test started on them."""

    def __init__(self, count: int, root: Path, prefix: str) -> None:
        self._fabric = Namespace()
        self._fabric.run(
            lambda: (tool("ip", "link", "add", "u0", "type", "bridge"), tool("ip", "link", "set", "u0", "up"))
        )
        self.nodes = [Node(number, root, prefix) for number in range(1, count + 1)]
        self.guests: list[Guest] = []
        for number, node in enumerate(self.nodes, start=1):
            self._join(node, f"n{number}")

    def _join(self, node: Node, port: str) -> None:
        fabric = f"/proc/{os.getpid()}/fd/{self._fabric.fd}"
        node.run("ip", "link", "set", "lo", "up")
        node.run("ip", "link", "add", "up0", "index", "1000", "type", "veth", "peer", "name", port, "netns", fabric)
        long, nodad = ("/64", ["nodad"]) if ":" in node.address else ("/24", [])
        node.run("ip", "addr", "add", node.address + long, "dev", "up0", *nodad)
        node.run("ip", "link", "set", "up0", "up")
        self._fabric.run(lambda: tool("ip", "link", "set", port, "master", "u0", "up"))

    def state(self, revision: int, *places: Location, of: NetworkSpec | None = None, **more: Any) -> NetworkState:
        endpoints = tuple(node.address for node in self.nodes)
        return NetworkState(spec=of or spec(), revision=revision, endpoints=endpoints, locations=places, **more)

    def apply(self, state: NetworkState) -> None:
        for node in self.nodes:
            node.apply(state)

    def plug(self, node: Node, card: Nic, *networks: NetworkSpec) -> Guest:
        self.guests.append(Guest(node, card, networks))
        return self.guests[-1]

    def close(self) -> None:
        for guest in self.guests:
            guest.stop()
        for node in self.nodes:
            node.close()
        self._fabric.close()


@contextlib.contextmanager
def site(count: int, prefix: str = "192.0.2.") -> Iterator[Site]:
    """prefix: of the nodes' addresses. Its files lie where users of their own reach them, as a node's do."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        made = Site(count, Path(directory), prefix)
        try:
            yield made
        finally:
            made.close()


def udp(card: Nic, peer: tuple[str, str], ports: tuple[int, int], data: bytes = b"hello", **more: Any) -> bytes:
    """A UDP datagram over IPv4 as a frame. peer: (MAC, address). more: mac, sender, to lie."""
    body = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    return ipv4(card, peer, 17, body, **more)


def ipv4(card: Nic, peer: tuple[str, str], protocol: int, body: bytes, **more: Any) -> bytes:
    mac, sender = more.get("mac", card.mac), more.get("sender") or card.addresses[0]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), more.get("number", 1), more.get("part", 0), 64, protocol, 0,
        socket.inet_aton(sender), socket.inet_aton(peer[1]),
    )  # fmt: skip
    from novacron.agent.network.frames import checksum

    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return octets(peer[0]) + octets(mac) + b"\x08\x00" + header + body


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
