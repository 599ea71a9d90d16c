"""Keeps the source's channels: dials each, greets, and dials again when it breaks, until the line is given up."""

from __future__ import annotations

import asyncio
import ssl
import struct

from novacron.agent.stream.channel import Channel, Hello, Welcome
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.lanes import CHUNK_BYTES
from novacron.agent.stream.line import Line
from novacron.errors import Malformed, MigrationFailed, Unauthenticated

CONNECT_WITHIN_S = 5.0
RETRY_S = 0.2
GONE_AFTER_S = 2.0


class Dialler:
    """welcome: what the target said of itself first."""

    def __init__(
        self,
        line: Line,
        context: ssl.SSLContext,
        target: tuple[str, int],
        token: bytes,
        local_host: str | None = None,
    ) -> None:
        self._line, self._context, self._target, self._token = line, context, target, token
        self._local = (local_host, 0) if local_host else None
        self._refused_since_s: float | None = None
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.reconnects = 0

    async def run(self, settings: Settings) -> None:
        """Until cancelled, or the line parts or fails."""
        async with asyncio.TaskGroup() as group:
            for number in range(settings.channels):
                group.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        while not self._line.over:
            try:
                await self._once(number)
            except ssl.SSLCertVerificationError:
                self._line.fail(Unauthenticated("the target is not who it should be: it shows another certificate"))
            except Malformed as wrong:
                self._line.fail(wrong)
            except ConnectionRefusedError:
                self._refused()
            except (OSError, EOFError, TimeoutError, struct.error):
                pass  # the line watches how long this has been going on
            await asyncio.sleep(RETRY_S)

    def _refused(self) -> None:
        """The port is the receiver's, open for as long as it lives: where nothing listens for a while, none does."""
        now_s = asyncio.get_running_loop().time()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        elif now_s - self._refused_since_s > GONE_AFTER_S:
            host, port = self._target
            self._line.fail(
                MigrationFailed(f"nothing listens at {host}:{port}: the target's end of the stream is gone")
            )

    async def _once(self, number: int) -> None:
        channel: Channel | None = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                host, port = self._target
                ends = await asyncio.open_connection(
                    host, port, ssl=self._context, limit=4 * CHUNK_BYTES, local_addr=self._local
                )
                self._refused_since_s = None
                channel = Channel(*ends)
                heard = await channel.hello(Hello(self._token, number, self._line.arrived))
            if not self.welcome.done():
                self.welcome.set_result(heard)
            await self._line.carry(number, channel, heard.arrived)
            if not self._line.over:
                self.reconnects += 1
        finally:
            if channel is not None:
                channel.abort()
