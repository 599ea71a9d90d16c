"""Looks for servers where the settings say: in DNS (SRV records), or on the local network (mDNS)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec
import structlog

from novacron.agent.servers import Servers
from novacron.clock import Clock
from novacron.config import MDNS, SRV
from novacron.errors import InvalidInput, NotFound, NovaCronError, Unavailable
from novacron.wire.discovery import CA, MAX_PLACES, MDNS_TYPE, PLACE

LOOK_EVERY_S = 60.0
FIRST_RETRY_S = 1.0
LISTEN_S = 3.0
"""So long answers are waited for on the local network: how many there are nobody says."""

Look = Callable[[], Awaitable[Sequence[str]]]


class Finder:
    """`run` until cancelled: looks again every minute, sooner while nothing is found. A failure changes nothing."""

    def __init__(self, servers: Servers, looks: Mapping[str, Look], clock: Clock) -> None:
        """looks: by source; see `looks_of`."""
        self._servers = servers
        self._looks = looks
        self._clock = clock
        self._log = structlog.get_logger("finder")

    @property
    def is_needed(self) -> bool:
        return bool(self._looks)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for source, look in self._looks.items():
                group.create_task(self._keep_looking(source, look), name="finder")

    async def _keep_looking(self, source: str, look: Look) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                addresses = await look()
                self._servers.find(source, addresses)
                failed: NovaCronError | None = None if addresses else NotFound("there is none")
            except NovaCronError as failure:
                failed = failure
            if failed is None:
                retry_s = FIRST_RETRY_S
                await self._clock.sleep(LOOK_EVERY_S)
                continue
            remedies = [reason.remedy for reason in failed.reasons]
            self._log.warning("no server is found", source=source, why=failed.message, remedy=remedies)
            await self._clock.sleep(retry_s)
            retry_s = min(retry_s * 2, LOOK_EVERY_S)


def looks_of(sources: Sequence[str], trusted: Callable[[], Collection[str]]) -> dict[str, Look]:
    """How to look at each source (AgentConfig.sources). trusted: fingerprints of the CAs by which servers are known.

    :raise InvalidInput: what is needed for it is not installed.
    """
    looks: dict[str, Look] = {}
    for source in sources:
        if source.startswith(SRV):
            looks[source] = _in_dns(source.removeprefix(SRV))
        else:
            looks[source] = on_network(source.removeprefix(MDNS), trusted)
    return looks


def _in_dns(name: str) -> Look:
    from novacron.agent.srv import resolved, usual  # few agents need it, and it is large

    return lambda: resolved(name, usual())


class Told(msgspec.Struct, frozen=True):
    """What an mDNS service says."""

    place: str
    ca: str


def on_network(interface: str, trusted: Callable[[], Collection[str]]) -> Look:
    """The servers of this node's cluster that tell the local network of themselves. interface: its address; empty: all.

    :raise InvalidInput: the library for it is not installed.
    """
    try:
        from novacron.agent.neighbours import listen
    except ImportError as missing:
        raise InvalidInput.field("servers", "mdns: needs zeroconf", "pip install 'novacron[mdns]'") from missing

    async def look() -> tuple[str, ...]:
        try:
            heard = await listen(MDNS_TYPE, interface, LISTEN_S)
        except OSError as failed:
            raise Unavailable(f"the local network cannot be asked: {failed}") from failed
        return ours([Told(words.get(PLACE, ""), words.get(CA, "")) for words in heard], trusted())

    return look


def ours(told: Sequence[Told], trusted: Collection[str]) -> tuple[str, ...]:
    """Where those are that name one of our cluster's CAs. That is no proof, and needs none: TLS asks for it."""
    return tuple(sorted({one.place for one in told if one.ca in trusted}))[:MAX_PLACES]
