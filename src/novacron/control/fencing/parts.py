"""What of fencing a server has, put together: what is asked of it, and what reaches fence devices."""

from __future__ import annotations

from fastapi import APIRouter

from novacron.clock import Clock
from novacron.config import ServerConfig
from novacron.control.fencing.device import opener
from novacron.control.fencing.routes import router
from novacron.control.fencing.seal import Seal
from novacron.control.fencing.service import FencingService
from novacron.control.fencing.status import Status
from novacron.control.ha.sights import Sights
from novacron.control.link import Agents
from novacron.control.room import Room
from novacron.control.store.records import Records


class Fencing:
    """secret: the agents', with which passwords are sealed. opens: reaches a fence device by its record."""

    def __init__(
        self,
        config: ServerConfig,
        records: Records,
        agents: Agents,
        sights: Sights,
        secret: str,
        room: Room,
        clock: Clock,
        pool_id: str,
    ) -> None:
        seal = Seal(secret)
        self.opens = opener(seal)
        self._service = FencingService(records, agents, sights, clock, config.timing, seal, self.opens)
        self._status = Status(records, sights, room, clock, config.timing, pool_id)

    def routes(self) -> APIRouter:
        """What people ask."""
        return router(self._service, self._status)
