"""Many clients of /api/v1/events in one process, on raw sockets: how late events are, and whether any lacks.

    python -m tests.bench.event_clients PORT COUNT < TOKEN

On standard output, one JSON object a line: `ready` (all listen); for each `figures N` on standard input, once every
client has had N events since the last time or five seconds after the last one came: `events` of all, `missed`,
`late_ms`, `cpu_s` since the last time, `frame`.

All have asked for the same, so all must be sent the same bytes. Whoever is told something first reads it, event by
event (`Told`); what the others are sent is compared with that byte for byte. This checks more than reading it a
thousand times would, and costs so little that the figures are the server's.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import sys
import time
from bisect import bisect_right
from typing import cast

import uvloop

EVENT = re.compile(rb'\{"t":"event","event":\{"seq":([0-9]+),.*?"description":"at ([0-9.]+)"')
TEXT, PING = 0x81, 0x89
KEY = base64.b64encode(b"0123456789abcdef").decode()
QUIET_S = 5.0
AT_ONCE = 50
PARTS = (50, 95, 99, 100)


def masked(opcode: int, payload: bytes) -> bytes:
    """A short frame of a client; a mask of zeros changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def frame_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the text of the frame that begins there begins and ends; None: it is not there as a whole."""
    if at + 2 > len(data):
        return None
    length, head = data[at + 1], 2
    if length >= 126:
        head = 4 if length == 126 else 10
        length = int.from_bytes(data[at + 2 : at + head], "big")
    start = at + head
    return (start, start + length) if start + length <= len(data) else None


class Told:
    """What every client has to be sent after its `ready`: whole frames, each read once."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends: list[int] = []  # of each event, in `text`
        self.stamps_s: list[float] = []
        self._seq = 0

    def more(self, frames: bytes) -> int:
        """The whole frames that stand there in front, up to the first ping: how many bytes they have.

        :raise AssertionError: one is no event, or not after the one before it.
        """
        at = 0
        while at < len(frames) and frames[at] != PING and (found := frame_at(frames, at)) is not None:
            event = EVENT.match(frames, found[0])
            assert frames[at] == TEXT, f"no event: {frames[at : at + 100]!r}"
            assert event is not None, f"no event: {frames[at : at + 100]!r}"
            assert int(event[1]) > self._seq, f"event {int(event[1])} came after {self._seq}"
            self._seq, at = int(event[1]), found[1]
            self.ends.append(len(self.text) + at)
            self.stamps_s.append(float(event[2]))
        self.text += frames[:at]
        return at

    def has_ping(self, data: bytes, at: int) -> int | None:
        """Where in what came to one who stands there a ping stands between two events."""
        first = bisect_right(self.ends, at - 1)
        starts = itertools.takewhile(lambda end: end < at + len(data), itertools.islice(self.ends, first, None))
        candidates = itertools.chain((0,) if at == 0 else (), (end - at for end in starts))
        return next((one for one in candidates if data[one] == PING and self.text.startswith(data[:one], at)), None)


class Client(asyncio.Protocol):
    """One subscriber to everything. late_s: of the oldest event in each piece that came: the later ones waited less."""

    def __init__(self, token: str, told: Told) -> None:
        self._token = token
        self._told = told
        self._part = b""  # of a frame, after what is compared
        self._at = 0  # how much has been compared
        self._open = False
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

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            self._begin(data)
            return
        if not self._part and self._told.text.startswith(data, self._at):
            self._at += len(data)
        else:
            self._compare(data)
        heard = bisect_right(self._told.ends, self._at)
        if heard > self.events:
            self.last_s = time.monotonic()
            self.late_s.append(self.last_s - self._told.stamps_s[self.events])
            self.events = heard

    def _begin(self, data: bytes) -> None:
        """The handshake's answer, then `ready`."""
        self._part += data
        if not self._open and b"\r\n\r\n" in self._part:
            self._open, self._part = True, b""
            self._transport.write(masked(0x1, b'{"t":"subscribe","object_types":["vm"]}'))
        elif self._open and frame_at(self._part, 0) is not None:
            assert b'"t":"ready"' in self._part, f"not ready: {self._part[:200]!r}"
            self._part = b""
            self.ready.set_result(None)

    def _compare(self, data: bytes) -> None:
        """What is told for the first time, has a ping in it, or ends within a frame that nobody has had yet."""
        told, data = self._told, self._part + data
        self._part = b""
        while data:
            known = len(told.text) - self._at
            if (ping := told.has_ping(data, self._at)) is not None:
                self._at += ping
                if (found := frame_at(data, ping)) is None:
                    self._part = data[ping:]
                    return
                self._transport.write(masked(0xA, data[found[0] : found[1]]))
                data = data[found[1] :]
            elif told.text.startswith(data[:known], self._at):
                self._at += min(known, len(data))
                data = data[known:]
                self._at += (read := told.more(data))
                data = data[read:]
                if read == 0:
                    self._part = data
                    return
            else:
                raise AssertionError(f"not what the others were told, at {self._at}: {data[:200]!r}")

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"not let in: {self._part[:200]!r}"))


async def figures(clients: list[Client], told: Told, heard_before: int, expected: int) -> dict[str, object]:
    """Wait as said above. heard_before: how many events every client had been sent by then."""
    began_s = time.monotonic()
    total = heard_before + expected
    while any(one.events < total for one in clients):
        quiet_since_s = max(began_s, *(one.last_s for one in clients))
        if time.monotonic() - quiet_since_s > QUIET_S:
            break
        await asyncio.sleep(0.05)
    late_ms = sorted(late_s * 1e3 for one in clients for late_s in one.late_s)
    for one in clients:
        one.late_s = []
    return {
        "events": sum(max(0, one.events - heard_before) for one in clients),
        "missed": sum(max(0, total - one.events) for one in clients),
        "lost_clients": sum(one.lost for one in clients),
        "late_ms": {f"p{part}": late_ms[min(len(late_ms) - 1, len(late_ms) * part // 100)] for part in PARTS},
        "frame": told.text[: told.ends[0]].decode("latin-1"),
    }


async def main(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    token = (await reader.readline()).decode().strip()
    told, clients, heard = Told(), list[Client](), 0
    while len(clients) < count:
        some = [Client(token, told) for _ in range(min(AT_ONCE, count - len(clients)))]
        for one in some:
            await loop.create_connection(lambda one=one: one, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*(one.ready for one in some))
        clients += some
    cpu_s = time.process_time()
    _say({"ready": len(clients)})
    while line := (await reader.readline()).decode().split():
        found = await figures(clients, told, heard, int(line[1]))
        heard, cpu_before_s, cpu_s = heard + int(line[1]), cpu_s, time.process_time()
        _say(found | {"cpu_s": cpu_s - cpu_before_s})


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2])))
