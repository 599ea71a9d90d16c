"""What of joining a server has, put together from its settings: all with a cluster's CA, next to nothing without."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import structlog
from fastapi import APIRouter

from novacron.clock import Clock
from novacron.config import ServerConfig
from novacron.control.doorman import BySecret, Doorman
from novacron.control.joining.authority import Authority
from novacron.control.joining.door import ByCertificate, Lines
from novacron.control.joining.doors import router
from novacron.control.joining.service import JoinService, Signing
from novacron.control.store.records import Records
from novacron.control.supervise import Work
from novacron.wire import ticket

DATES_EVERY_S = 3600.0


class Joining:
    """authority: None: the server has no cluster's CA, and lets agents in by their secret. Nothing runs yet."""

    def __init__(self, config: ServerConfig, records: Records, clock: Clock, secret: str) -> None:
        """:raise InvalidInput: the cluster directory cannot be used."""
        self.authority = Authority(config.cluster_dir) if config.cluster_dir else None
        self._clock = clock
        self._door = ByCertificate(records.store, clock, secret) if self.authority else None
        self.doorman: Doorman = self._door or BySecret(secret)
        lasts = datetime.timedelta(seconds=config.node_certificate_lasts_s)
        signing = Signing(self.authority, lasts, ticket.key_of(secret)) if self.authority else None
        self.service = JoinService(records, clock, signing)

    async def start(self) -> None:
        """Read who may come in, and have the server's certificate in date."""
        if self.authority is not None and self._door is not None:
            self.authority.keep_in_date(self._clock.wall())
            await self._door.start()

    def doors(self) -> tuple[APIRouter, ...]:
        """Where nodes ask for certificates."""
        return (router(self.service, self._door),) if self._door else ()

    def works(self, lines: Lines) -> Mapping[str, Work]:
        """What watches over certificates, the nodes' and the server's own, by name."""
        door, authority = self._door, self.authority
        if door is None or authority is None:
            return {}

        async def keep_in_date() -> None:
            while True:
                await self._clock.sleep(DATES_EVERY_S)
                if authority.keep_in_date(self._clock.wall()):
                    structlog.get_logger("joining").info("the server's certificate was renewed")

        return {"identities": door.run, "door": lambda: door.watch_over(lines), "server_certificate": keep_in_date}
