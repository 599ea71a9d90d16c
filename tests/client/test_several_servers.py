"""A client of several servers: whichever can be reached is asked; one that dies is passed over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from novacron.client import nodes
from novacron.client.asynchronous import AsyncClient
from novacron.client.endpoint import endpoints_of
from novacron.client.sync import Client
from novacron.errors import InvalidInput, Unavailable

pytestmark = pytest.mark.anyio

PAGE = b'{"items":[],"next_cursor":null}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(PAGE), PAGE)


class Counter:
    """A server that answers every request with an empty page, and counts them; `cuts`: it hangs up instead."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.cuts = False
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                self.hosts.append(head.partition("\r\nhost: ")[2].partition("\r\n")[0])
                if self.cuts:
                    break
                writer.write(ANSWER)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def counting() -> AsyncIterator[Counter]:
    made = Counter()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, nor will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


async def test_one_that_cannot_be_reached_is_passed_over(nobody: str) -> None:
    notices: list[str] = []
    async with (
        counting() as there,
        AsyncClient(f"{nobody},{there.address}", "t", on_notice=notices.append) as client,
    ):
        for _ in range(3):
            await client.do(nodes.search())
        assert there.hosts == [there.address.removeprefix("http://")] * 3
        assert notices == [], "nothing was sent twice, nobody waited"


async def test_one_that_hangs_up_is_followed_by_the_next() -> None:
    async with counting() as one, counting() as other, AsyncClient(f"{one.address},{other.address}", "t") as client:
        await client.do(nodes.search())
        one.cuts = True
        await client.do(nodes.search())
        await client.do(nodes.search())
        assert (len(one.hosts), len(other.hosts)) == (2, 2)


async def test_when_none_answers_all_are_named(nobody: str) -> None:
    async with AsyncClient(f"{nobody},{nobody}", "t", tries=1) as client:
        with pytest.raises(Unavailable, match=f"{nobody},{nobody}"):
            await client.do(nodes.search())


async def test_the_blocking_client_does_the_same(nobody: str) -> None:
    async with counting() as there:
        with Client(f"{nobody},{there.address}", "t", on_notice=lambda _: None) as client:
            asked = threading.Thread(target=lambda: client.do(nodes.search()))
            asked.start()
            await asyncio.to_thread(asked.join)
        assert len(there.hosts) == 1


def test_every_address_is_checked() -> None:
    with pytest.raises(InvalidInput):
        endpoints_of("https://a:1,http://b.example:2")
    with pytest.raises(InvalidInput):
        endpoints_of("https://a:1,")
