"""Many clients of /api/v1/events in one process, on raw sockets: how late events are, and whether any lacks.

    python -m tests.bench.event_clients PORT COUNT < TOKEN

On standard output, one JSON object a line: `ready` (all listen); for each `figures N` on standard input, once every
client has had N events since the last time or five seconds after the last one came: `events` of all, `missed`,
`late_ms`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import time
from typing import cast

import uvloop

STAMP = re.compile(rb'"description":"at ([0-9.]+)"')
TEXT, PING = 0x81, 0x89
KEY = base64.b64encode(b"0123456789abcdef").decode()
QUIET_S = 5.0
AT_ONCE = 50


def masked(opcode: int, payload: bytes) -> bytes:
    """A short frame of a client; a mask of zeros changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


class Client(asyncio.Protocol):
    """One subscriber to everything. late_s: of the oldest event in each piece that came: the later ones waited less."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._part = b""
        self._skip = 0
        self.events = 0
        self.late_s: list[float] = []
        self.last_s = 0.0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._transport.write(
            "GET /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Authorization: Bearer {self._token}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        self._open = False

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if not self._open:
            self._part += data
            if b"\r\n\r\n" in self._part:
                self._open, self._part = True, b""
                self._transport.write(masked(0x1, b'{"t":"subscribe","object_types":["vm"]}'))
            return
        if self.ready.done() and (stamp := STAMP.search(data)) is not None:
            self.late_s.append(now_s - float(stamp[1]))
            self.last_s = now_s
        if self._part:
            data, self._part = self._part + data, b""
        self._walk(data)

    def _walk(self, data: bytes) -> None:
        """From frame to frame, without looking into them."""
        at, size = self._skip, len(data)
        while at + 2 <= size:
            length, head = data[at + 1], 2
            if length >= 126:
                head = 4 if length == 126 else 10
                length = int.from_bytes(data[at + 2 : at + head], "big")
            if at + head > size or (data[at] == PING and at + head + length > size):
                break
            if data[at] == TEXT:
                self._take()
            elif data[at] == PING:
                self._transport.write(masked(0xA, data[at + head : at + head + length]))
            at += head + length
        self._part, self._skip = data[at:], max(0, at - size)

    def _take(self) -> None:
        if self.ready.done():
            self.events += 1
        else:
            self.ready.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"not let in: {self._part[:200]!r}"))


async def figures(clients: list[Client], expected: int) -> dict[str, object]:
    """Wait as said above; counts begin anew after this."""
    began_s = time.monotonic()
    while any(one.events < expected for one in clients):
        quiet_since_s = max(began_s, *(one.last_s for one in clients))
        if time.monotonic() - quiet_since_s > QUIET_S:
            break
        await asyncio.sleep(0.05)
    late_ms = sorted(late_s * 1e3 for one in clients for late_s in one.late_s)
    found: dict[str, object] = {
        "events": sum(one.events for one in clients),
        "missed": sum(max(0, expected - one.events) for one in clients),
        "lost_clients": sum(one.lost for one in clients),
        "late_ms": {
            f"p{part}": late_ms[min(len(late_ms) - 1, len(late_ms) * part // 100)] for part in (50, 95, 99, 100)
        },
        "cpu_s": time.process_time(),
    }
    for one in clients:
        one.events, one.late_s = 0, []
    return found


async def main(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    token = (await reader.readline()).decode().strip()
    clients: list[Client] = []
    while len(clients) < count:
        some = [Client(token) for _ in range(min(AT_ONCE, count - len(clients)))]
        for one in some:
            await loop.create_connection(lambda one=one: one, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*(one.ready for one in some))
        clients += some
    _say({"ready": len(clients)})
    while line := (await reader.readline()).decode().split():
        _say(await figures(clients, int(line[1])))


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2])))
