"""The lab's links, and what is done to them while it runs: late, lossy, slow, cut, unplugged, parted in pairs."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

import msgspec
from pyroute2 import IPRoute

from novacron.errors import InvalidInput
from novacron.lab import silence
from novacron.lab.namespaces import Namespace
from novacron.lab.network import UPLINK, Fabric, index_of, port_of
from novacron.lab.record import LabDir
from novacron.lab.wire import Wire, end_of

MAX_LATENCY_MS = 10_000.0
MIN_RATE_BIT_PER_S = 8_000
_BURST_BYTES = 16 << 10
_QUEUE_MS = 50
_ROOT = 0xFFFFFFFF
_SIOCETHTOOL = 0x8946
_OFFLOADS = (0x17, 0x19, 0x1F, 0x24)  # ETHTOOL_STXCSUM, SSG, STSO, SGSO


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's link is like. latency: one way, in both directions; jitter: give or take, frames stay in order.

    loss: the share of frames lost, 0 to 1, in each direction. rate: in each direction; None: as fast as it goes.
    cut: nothing passes and no end notices. unplugged: both ends see the carrier go.
    """

    latency_ms: float = 0
    jitter_ms: float = 0
    loss: float = 0
    rate_bit_per_s: int | None = None
    cut: bool = False
    unplugged: bool = False

    @property
    def needs_wire(self) -> bool:
        """Whether the kernel alone cannot do it."""
        return bool(self.latency_ms or self.jitter_ms or self.loss)

    def check(self) -> LinkState:
        """Itself. :raise InvalidInput: no link can be like that."""
        for field, value in (("latency_ms", self.latency_ms), ("jitter_ms", self.jitter_ms)):
            if not 0 <= value <= MAX_LATENCY_MS:
                raise InvalidInput.field(field, f"{value:g} is out of bounds", f"give 0 to {MAX_LATENCY_MS:g} ms")
        if self.jitter_ms > self.latency_ms:
            raise InvalidInput.field("jitter_ms", "is more than the latency", "no frame arrives before it is sent")
        if not 0 <= self.loss <= 1:
            raise InvalidInput.field("loss", f"{self.loss:g} is no share", "give 0 to 1 (0 % to 100 %)")
        if self.rate_bit_per_s is not None and self.rate_bit_per_s < MIN_RATE_BIT_PER_S:
            raise InvalidInput.field("rate_bit_per_s", "is too slow", f"give at least {MIN_RATE_BIT_PER_S} bit/s")
        return self


class Links:
    """All links of a lab. Changes are made at once, and undone when a node loses power until it has it again."""

    def __init__(self, fabric: Fabric, lab: LabDir, seed: int = 0) -> None:
        self._fabric, self._lab, self._seed = fabric, lab, seed
        self._states: dict[int, LinkState] = {}
        self._wires: dict[int, Wire] = {}
        self._parted: set[frozenset[int]] = set()
        self._laid: set[int] = set()
        self._silent = False

    def join(self, number: int) -> Namespace:
        """Lay the network of a node that is powered on, its link as it was said to be."""
        namespace = self._fabric.join(number)
        self._laid.add(number)
        self._lay(number, LinkState(), self.state(number))
        return namespace

    def part(self, number: int) -> None:
        """Its node has lost its power."""
        self._laid.discard(number)
        if number in self._wires:
            self._wires.pop(number).lift()
        self._fabric.part(number)

    def state(self, number: int) -> LinkState:
        return self._states.get(number, LinkState())

    def change(self, number: int, state: LinkState) -> None:
        """The link of node `number` is like that from now on.

        :raise InvalidInput: no link can be. :raise LabFailed: a tool is missing, or a wire has died.
        """
        before, self._states[number] = self.state(number), state.check()
        if number in self._laid:
            self._lay(number, before, state)
        self._silence()

    def between(self, one: int, other: int, *, cut: bool) -> None:
        """Whether anything passes between two nodes. What they say to others does."""
        if cut:
            self._parted.add(frozenset((one, other)))
        else:
            self._parted.discard(frozenset((one, other)))
        self._silence()

    def parted(self) -> list[tuple[int, int]]:
        """The pairs that were cut apart."""
        return sorted((min(pair), max(pair)) for pair in self._parted)

    def close(self) -> None:
        """End the wires."""
        while self._wires:
            self._wires.popitem()[1].lift()

    def _lay(self, number: int, before: LinkState, state: LinkState) -> None:
        node, fabric, port = self._fabric.nodes[number - 1], self._fabric.fabric, port_of(number)
        if state.rate_bit_per_s != before.rate_bit_per_s:
            node.run(lambda: _shape(UPLINK, state.rate_bit_per_s))
            fabric.run(lambda: _shape(port, state.rate_bit_per_s))
        wire = self._wires.get(number)
        if wire is not None and not (state.needs_wire and wire.lives):
            self._wires.pop(number).lift()
            wire = None
        if state.needs_wire and wire is None:
            node.run(lambda: _offload(UPLINK, on=False))  # else it hands over unfinished frames of 64 KiB
            wire = self._wires[number] = Wire(self._fabric, number, self._lab, self._seed + number)
        elif not state.needs_wire and before.needs_wire:
            node.run(lambda: _offload(UPLINK, on=True))
        if wire is not None:
            wire.set(state.latency_ms, state.jitter_ms, state.loss)
        if state.unplugged != before.unplugged:
            fabric.run(lambda: _plug(port, up=not state.unplugged))

    def _silence(self) -> None:
        cut = sorted(number for number, state in self._states.items() if state.cut)
        wanted = bool(cut or self._parted)
        if wanted or self._silent:
            rules = silence.ruleset([_ports(number) for number in cut], [tuple(map(_ports, p)) for p in self.parted()])
            self._fabric.fabric.run(lambda: silence.apply(rules))
        self._silent = wanted


class Link:
    """What may be done to one node's link. It takes effect at once, and lasts over power cuts of the node."""

    def __init__(self, links: Links, number: int) -> None:
        self._links, self._number = links, number

    @property
    def state(self) -> LinkState:
        return self._links.state(self._number)

    def set(
        self, *, latency_ms: float = 0, jitter_ms: float = 0, loss: float = 0, rate_bit_per_s: int | None = None
    ) -> None:
        """Make it so, as `LinkState` has the words. :raise InvalidInput: no link can be."""
        self._change(latency_ms=latency_ms, jitter_ms=jitter_ms, loss=loss, rate_bit_per_s=rate_bit_per_s)

    def cut(self) -> None:
        """Silence: no frame passes, and no end sees why."""
        self._change(cut=True)

    def unplug(self) -> None:
        """Pull the cable: both ends see the carrier go."""
        self._change(unplugged=True)

    def mend(self) -> None:
        """Neither cut nor unplugged any more; as late, lossy and slow as it was."""
        self._change(cut=False, unplugged=False)

    def become(self, state: LinkState) -> None:
        """All of it at once. :raise InvalidInput: no link can be."""
        self._links.change(self._number, state)

    def _change(self, **changes: object) -> None:
        self.become(msgspec.structs.replace(self.state, **changes))


class Pair:
    """Two nodes, and whether they hear each other. With others both talk as ever."""

    def __init__(self, links: Links, one: int, other: int) -> None:
        self._links, self._one, self._other = links, one, other

    def cut(self) -> None:
        """Silence between the two."""
        self._links.between(self._one, self._other, cut=True)

    def mend(self) -> None:
        """They hear each other again."""
        self._links.between(self._one, self._other, cut=False)


def _ports(number: int) -> silence.Ports:
    """The names its link's end at the bridge may have."""
    return (port_of(number), end_of(number))


def _shape(name: str, rate_bit_per_s: int | None) -> None:
    with IPRoute() as ip:
        index = index_of(ip, name)
        if any(qdisc.get_attr("TCA_KIND") == "tbf" for qdisc in ip.get_qdiscs(index)):
            ip.tc("del", index=index, parent=_ROOT)
        if rate_bit_per_s is not None:
            rate = rate_bit_per_s // 8
            burst = max(_BURST_BYTES, rate // 250)
            ip.tc("add", "tbf", index=index, rate=rate, burst=burst, limit=burst + rate * _QUEUE_MS // 1000)


def _plug(name: str, *, up: bool) -> None:
    with IPRoute() as ip:
        ip.link("set", index=index_of(ip, name), state="up" if up else "down")


def _offload(name: str, *, on: bool) -> None:
    """Whether the kernel leaves checksums and cutting into frames to this link, which as a veth does neither."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        for command in _OFFLOADS:
            value = bytearray(struct.pack("II", command, on))
            pinned = (ctypes.c_char * len(value)).from_buffer(value)
            fcntl.ioctl(door, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(pinned)))
