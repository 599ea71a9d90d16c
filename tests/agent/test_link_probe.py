"""The link probe: a burst between two real ends; its peer alone is let in; limits and caps are kept."""

from __future__ import annotations

import asyncio
import socket

import pytest

from novacron.agent import link_probe
from novacron.agent.link_probe import LinkProber, rate_of
from novacron.errors import InvalidInput, Unavailable
from novacron.wire.link import MOST_BYTES, MOST_S, LinkAt, LinkListen, LinkProbe
from tests.agent.stream_ends import HOST, Relay

MIB = 1 << 20
pytestmark = pytest.mark.anyio


async def test_a_burst_is_bounded_and_its_rate_is_that_of_its_arrival() -> None:
    target, source = LinkProber(HOST), LinkProber(HOST)
    at = await target.listen(LinkListen(peer=HOST))
    found = await source.probe(LinkProbe(to=at))
    assert 0 < found.sent_bytes <= MOST_BYTES
    assert found.rate_bytes_per_s > found.sent_bytes / 5
    assert 0 < found.rtt_ms < 1000
    with pytest.raises(Unavailable):  # the port was for that one burst
        await source.probe(LinkProbe(to=at))
    await target.close()


async def test_it_keeps_to_its_cap() -> None:
    target, source = LinkProber(HOST), LinkProber(HOST)
    at = await target.listen(LinkListen(peer=HOST))
    found = await source.probe(LinkProbe(to=at, bytes_per_s=2 * MIB))
    assert found.sent_bytes <= 2 * MIB * MOST_S + MIB
    assert found.rate_bytes_per_s == pytest.approx(2 * MIB, rel=0.25)
    await target.close()


async def test_only_its_peer_and_who_has_the_key_is_let_in() -> None:
    target, source = LinkProber(HOST), LinkProber(HOST)
    elsewhere = await target.listen(LinkListen(peer="127.0.0.9"))
    with pytest.raises(Unavailable):
        await source.probe(LinkProbe(to=elsewhere))
    at = await target.listen(LinkListen(peer=HOST))
    with pytest.raises(Unavailable):
        await source.probe(LinkProbe(to=LinkAt(host=at.host, port=at.port, key_hex="ab" * 32)))
    assert (await source.probe(LinkProbe(to=at))).sent_bytes > 0  # a stranger has not used it up
    with pytest.raises(InvalidInput):
        await target.listen(LinkListen(peer="node-1"))
    await target.close()
    with socket.socket() as knock, pytest.raises(ConnectionRefusedError):
        knock.connect((elsewhere.host, elsewhere.port))


async def test_a_link_that_is_dead_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_probe, "CONNECT_WITHIN_S", 0.3)
    target, source = LinkProber(HOST), LinkProber(HOST)
    at, relay = await target.listen(LinkListen(peer=HOST)), Relay()
    async with relay.opened((at.host, at.port)) as (host, port):
        relay.deafen()
        with pytest.raises(Unavailable, match="does not answer in time"):
            async with asyncio.timeout(5.0):
                await source.probe(LinkProbe(to=LinkAt(host=host, port=port, key_hex=at.key_hex)))
        relay.mend()
    await target.close()


def test_the_second_half_of_the_time_counts() -> None:
    slow_start = [(0.0, 1), (0.5, 100), (0.6, 200), (0.8, 600), (1.0, 1100)]
    assert rate_of(slow_start) == pytest.approx(2000)
    assert rate_of([(0.0, 1), (1.0, 101)]) == pytest.approx(100)
    assert rate_of([]) == rate_of([(0.0, 5)]) == rate_of([(1.0, 5), (1.0, 9)]) == 0.0
