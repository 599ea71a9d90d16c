"""Servers found in DNS, at a real DNS server on loopback, and on a local network, by real mDNS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from novacron.agent.finder import LOOK_EVERY_S, Finder, Told, looks_of, on_network, ours
from novacron.agent.servers import FILE, Servers
from novacron.agent.srv import resolved
from novacron.control.advertiser import Advertiser
from novacron.errors import NotFound, NovaCronError, Unavailable
from novacron.testing.hand_clock import HandClock
from tests.agent.waiting import until

pytestmark = pytest.mark.anyio

NAME = "_novacron._tcp.example.org"
ONE, TWO = "https://s1.example.org:8470", "https://s2.example.org:8471"
OURS, THEIRS = "a" * 64, "b" * 64


class Dns(asyncio.DatagramProtocol):
    """Answers for the SRV records it was given, and for nothing else; silent: for nothing at all."""

    def __init__(self, records: Mapping[str, list[str]]) -> None:
        self.records = records
        self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.silent:
            return
        asked = dns.message.from_wire(data)
        answer = dns.message.make_response(asked)
        name = asked.question[0].name.to_text(omit_final_dot=True)
        if name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif self.records[name]:
            answer.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "SRV", *self.records[name]))
        self.transport.sendto(answer.to_wire(), addr)


@contextlib.asynccontextmanager
async def a_dns(records: Mapping[str, list[str]]) -> AsyncIterator[tuple[Dns, dns.asyncresolver.Resolver]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Dns(records), local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    try:
        yield server, resolver
    finally:
        transport.close()


async def test_srv_records_are_servers_in_order_of_priority() -> None:
    records = {NAME: ["20 5 8471 s2.example.org.", "10 5 8470 s1.example.org."]}
    async with a_dns(records) as (_, resolver):
        assert await resolved(NAME, resolver) == (ONE, TWO)


async def test_a_name_without_servers_is_told_from_a_dns_that_does_not_answer() -> None:
    async with a_dns({NAME: [], "off.example.org": ["0 0 0 ."]}) as (server, resolver):
        for name in (NAME, "other.example.org"):
            with pytest.raises(NotFound, match="no SRV record"):
                await resolved(name, resolver)
        assert await resolved("off.example.org", resolver) == ()
        server.silent = True
        resolver.timeout = 0.05
        with pytest.raises(Unavailable, match="does not answer"):
            await resolved(NAME, resolver, within_s=0.1)


async def test_what_is_found_is_looked_at_again_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    clock = HandClock()
    servers = Servers((), tmp_path / FILE, clock)
    answers: asyncio.Queue[tuple[str, ...] | NovaCronError] = asyncio.Queue()

    async def look() -> tuple[str, ...]:
        answer = await answers.get()
        if isinstance(answer, NovaCronError):
            raise answer
        return answer

    finding = asyncio.create_task(Finder(servers, {"srv:x": look}, clock).run())
    wanted = []
    for answer in (NotFound("none yet"), (ONE,), Unavailable("no DNS"), (), (TWO,)):
        answers.put_nowait(answer)
        await until(lambda: clock.next_wake_s is not None)
        wanted.append(servers.wanted())
        await clock.advance(LOOK_EVERY_S + 1)
    finding.cancel()
    await asyncio.gather(finding, return_exceptions=True)
    assert wanted == [(), (ONE,), (ONE,), (), (TWO,)]


def test_sources_have_looks() -> None:
    assert set(looks_of(["srv:" + NAME], frozenset)) == {"srv:" + NAME}


def test_servers_of_other_clusters_are_passed_over() -> None:
    assert ours([Told(TWO, THEIRS), Told(ONE, OURS), Told(ONE, OURS)], {OURS}) == (ONE,)


async def test_a_server_that_tells_the_network_of_itself_is_found_until_it_ends() -> None:
    pytest.importorskip("zeroconf", reason="the extra mdns is not installed")
    me, stranger = (f"01890000-0000-7000-8000-00000000000{n}" for n in (1, 2))
    look = on_network("127.0.0.1", lambda: {OURS})
    telling = [
        asyncio.create_task(Advertiser(me, ONE, OURS, "127.0.0.1").run()),
        asyncio.create_task(Advertiser(stranger, TWO, THEIRS, "127.0.0.1").run()),
    ]
    try:
        async with asyncio.timeout(60):
            while await look() != (ONE,):
                assert not any(task.done() for task in telling), telling
    finally:
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
    async with asyncio.timeout(60):
        while await look() != ():
            pass
