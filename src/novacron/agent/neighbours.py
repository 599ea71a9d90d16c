"""Listens for services that tell the local network of themselves by mDNS. Needs the extra `mdns`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from zeroconf import InterfaceChoice, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

MAX_HEARD = 64
MAX_WORD_BYTES = 512
_ASK_MS = 1000


async def listen(kind: str, interface: str, listen_s: float) -> list[Mapping[str, str]]:
    """What each service of that kind says in its TXT record. interface: its address; empty: all.

    :raise OSError: the network cannot be used.
    """
    network = AsyncZeroconf(interfaces=[interface] if interface else InterfaceChoice.Default)
    names: set[str] = set()

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001
        if state_change is not ServiceStateChange.Removed and len(names) < MAX_HEARD:
            names.add(name)

    try:
        browser = AsyncServiceBrowser(network.zeroconf, kind, handlers=[heard])
        await asyncio.sleep(listen_s)  # the window of the protocol: nobody says how many will answer
        await browser.async_cancel()
        infos = [AsyncServiceInfo(kind, name) for name in sorted(names)]
        await asyncio.gather(*(info.async_request(network.zeroconf, _ASK_MS) for info in infos))
    finally:
        await network.async_close()
    return [_words(info) for info in infos]


def _words(info: AsyncServiceInfo) -> dict[str, str]:
    said = {key.decode("ascii", "replace"): value or b"" for key, value in info.properties.items()}
    return {key: value.decode("ascii", "replace") for key, value in said.items() if len(value) <= MAX_WORD_BYTES}
