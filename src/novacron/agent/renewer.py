"""Keeps this node's certificate in date: asks for the next one at two thirds of its life. The line stays open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from novacron.agent import credentials, enrolment
from novacron.agent.credentials import Badge
from novacron.clock import Clock
from novacron.errors import NovaCronError, Unavailable
from novacron.wire import joining as wire

LOOK_EVERY_S = 60.0
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0


def renew(servers: Sequence[str], badge: Badge, node_id: str) -> None:
    """Get the next certificate from the first server that can be reached, with a new key, and keep it.

    :raise NovaCronError: the present one is kept.
    """
    key_pem, csr_pem = credentials.request(node_id, badge.name())
    ask = wire.Renew(csr_pem=csr_pem)
    failed = Unavailable("no server is known yet")
    for server in servers:
        try:
            return badge.keep(enrolment.renew(server, badge.context(), ask), key_pem)
        except Unavailable as failure:
            failed = failure
    raise failed


class Renewer:
    """`run` until cancelled. A certificate that was renewed by hand meanwhile is seen."""

    def __init__(
        self, servers: Callable[[], Sequence[str]], badge: Badge, node_id: str, clock: Clock, rng: random.Random
    ) -> None:
        self._servers = servers
        self._badge = badge
        self._node_id = node_id
        self._clock = clock
        self._rng = rng
        self._log = structlog.get_logger("renewer")

    async def run(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                left_s = (self._badge.renew_at() - self._clock.wall()).total_seconds()
                if left_s > 0:
                    await self._clock.sleep(min(left_s, LOOK_EVERY_S))
                    continue
                await asyncio.to_thread(renew, self._servers(), self._badge, self._node_id)
                self._log.info("the certificate was renewed", until=str(self._badge.certificate().not_valid_after_utc))
                retry_s = FIRST_RETRY_S
            except NovaCronError as refused:
                remedies = [reason.remedy for reason in refused.reasons]
                self._log.warning("the certificate was not renewed", why=refused.message, remedy=remedies)
                await self._clock.sleep(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(retry_s * 2, LAST_RETRY_S)
