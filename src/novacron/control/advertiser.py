"""Tells the local network by mDNS where this server is; who it is nodes learn from its certificate."""

from __future__ import annotations

import asyncio
import importlib.util
from urllib.parse import urlsplit

from novacron.errors import InvalidInput
from novacron.wire.discovery import CA, MDNS_TYPE, PLACE

_ALL = ("localhost", "0.0.0.0", "::")  # noqa: S104  (compared with, not listened on)


class Advertiser:
    """`run` until cancelled; then the network is told that the server is gone."""

    def __init__(self, server_id: str, place: str, fingerprint: str, interface: str) -> None:
        """place: what is told; fingerprint: of the CA that signs; interface: its address, or one that stands for all.

        :raise InvalidInput: the library for it is not installed.
        """
        if importlib.util.find_spec("zeroconf") is None:
            raise InvalidInput.field("mdns", "needs zeroconf", "pip install 'novacron[mdns]'")
        self._server_id = server_id
        self._place = place
        self._fingerprint = fingerprint
        self._interface = interface

    async def run(self) -> None:
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        one = [] if self._interface in _ALL else [self._interface]
        network = AsyncZeroconf(interfaces=one or InterfaceChoice.Default)
        info = AsyncServiceInfo(
            MDNS_TYPE,
            f"{self._server_id}.{MDNS_TYPE}",  # names of servers may stand twice, ids may not
            port=urlsplit(self._place).port or 0,
            properties={PLACE: self._place, CA: self._fingerprint},
            server=f"{self._server_id}.local.",  # the host's own name there is not ours to claim
            parsed_addresses=one,
        )
        try:
            await (await network.async_register_service(info))
            await asyncio.Event().wait()
        finally:
            await network.async_close()
