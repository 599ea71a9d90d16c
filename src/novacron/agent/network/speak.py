"""Speaks on a network from the node's own bridge: announces a card that has come, and asks who has an address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator

from novacron.agent.network import frames
from novacron.agent.network.subnets import Address
from novacron.clock import Clock
from novacron.errors import NovaCronError

ANNOUNCE_AT_S = (0.0, 0.05, 0.15, 0.4, 1.0)
ASK_EVERY_S = 0.002
_ALL_KINDS = 3
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS = 263, 1, 1
_MAX_FRAME = 1 << 16


async def announce(bridge: str, mac: str, addresses: Iterable[Address], clock: Clock) -> None:
    """Say where a card is, at once and a few times more: to this node's cards, and through the tunnel to all others."""
    said = frames.announcements(mac, addresses)
    begun = clock.monotonic_s()
    with _opened(bridge, 0) as line:
        for at in ANNOUNCE_AT_S:
            await clock.sleep(max(0.0, begun + at - clock.monotonic_s()))
            for frame in said:
                with contextlib.suppress(BlockingIOError):  # the queue is full: there is a next time
                    line.send(frame)


async def ask(bridge: str, own_mac: str, address: Address, deadline_s: float, clock: Clock) -> float | None:
    """Milliseconds until the address answered; None: it did not."""
    asked = frames.question(own_mac, address)
    with _opened(bridge, _ALL_KINDS) as line:
        begun = clock.monotonic_s()
        listening = asyncio.create_task(_hear(line, address))
        try:
            while (passed := clock.monotonic_s() - begun) < deadline_s:
                with contextlib.suppress(BlockingIOError):
                    line.send(asked)
                await asyncio.wait((listening,), timeout=min(ASK_EVERY_S, deadline_s - passed))
                if listening.done():
                    await listening
                    return (clock.monotonic_s() - begun) * 1000
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    return None


async def _hear(line: socket.socket, address: Address) -> None:
    loop = asyncio.get_running_loop()
    while not frames.answers(await loop.sock_recv(line, _MAX_FRAME), address):
        pass


@contextlib.contextmanager
def _opened(interface: str, kind: int) -> Iterator[socket.socket]:
    """kind 0: for sending alone. :raise NovaCronError: there is no such interface, or no privilege."""
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(kind))
    try:
        line.bind((interface, kind))
        if kind:  # answers come to a hardware address that is not the bridge's
            promiscuous = struct.pack("IHH8x", socket.if_nametoindex(interface), _PROMISCUOUS, 0)
            line.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, promiscuous)
        yield line
    except OSError as refused:
        raise NovaCronError(f"cannot speak on {interface}: {refused}") from refused
    finally:
        line.close()
