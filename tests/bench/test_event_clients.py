"""The clients of the events' bench read every event however it is cut, and see what lacks."""

from __future__ import annotations

import asyncio
import random

import pytest

from novacron.control.peer import framed
from tests.bench.event_clients import Client, Told

pytestmark = pytest.mark.anyio

PING = b"\x89\x04ping"
PONG = b"\x8a\x84\0\0\0\0ping"


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def event(seq: int) -> bytes:
    text = (
        f'{{"t":"event","event":{{"seq":{seq},"object":{{"name":"{"x" * (seq % 200)}","description":"at {seq}.5"}}}}}}'
    )
    return framed(text.encode())


def listening(told: Told) -> tuple[Client, Wire]:
    """A client that has been let in."""
    client, wire = Client("token", told), Wire()
    client.connection_made(wire)
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    client.data_received(framed(b'{"t":"ready","seq":0}'))
    wire.written.clear()
    return client, wire


@pytest.mark.parametrize("seed", range(20))
async def test_everything_is_heard_in_whatever_pieces_and_with_pings_in_between(seed: int) -> None:
    rng, told = random.Random(seed), Told()
    clients = [listening(told) for _ in range(3)]
    pings = [rng.randrange(3) for _ in clients]
    texts = []
    for count in pings:
        frames = [event(seq) for seq in range(1, 40)]
        for _ in range(count):
            frames.insert(rng.randrange(len(frames) + 1), PING)
        texts.append(b"".join(frames))
    while any(texts):
        which = rng.choice([number for number, text in enumerate(texts) if text])
        size = rng.choice((1, 3, 50, 500, 5000))
        clients[which][0].data_received(texts[which][:size])
        texts[which] = texts[which][size:]
    assert [client.events for client, _ in clients] == [39, 39, 39]
    assert [wire.written for _, wire in clients] == [[PONG] * count for count in pings]
    assert told.stamps_s == [seq + 0.5 for seq in range(1, 40)]


@pytest.mark.parametrize(
    "heard", [(1, 3), (1, 1), (1, 2, 2), (2, 1), (1, 2, 4)], ids=["lacks", "twice", "later_twice", "order", "end"]
)
async def test_one_that_is_told_something_else_says_so(heard: tuple[int, ...]) -> None:
    told = Told()
    first, second = listening(told)[0], listening(told)[0]
    first.data_received(b"".join(event(seq) for seq in (1, 2, 3)))
    with pytest.raises(AssertionError):
        second.data_received(b"".join(event(seq) for seq in heard))


@pytest.mark.parametrize("then", [event(1), framed(b"ok"), framed(b'{"t":"resync","seq":9}')])
async def test_the_first_to_hear_reads_what_it_hears(then: bytes) -> None:
    client, _ = listening(Told())
    client.data_received(event(1))
    with pytest.raises(AssertionError):
        client.data_received(then)
