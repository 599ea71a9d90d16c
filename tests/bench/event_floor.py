"""The floor of the events' bench: a bare writer of the same bytes to as many connections, which does nothing else.

    python -m tests.bench.event_floor < FRAME

FRAME: one event's frame as a server sent it, as a line of JSON. It prints its port, lets tests.bench.event_clients in
without looking at what they ask, and for `go SECONDS PER_S` on standard input writes as many events: their time is put
in as they are made, ten at once, and what has gathered goes to every client each 50 ms. Then it prints its CPU time.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

GATHER_S = 0.05
AT_ONCE = 10
SEQ, STAMP = re.compile(rb'"seq":([0-9]+)'), re.compile(rb'"description":"at ([0-9.]+)"')
READY = b'{"t":"ready","seq":0}'


class Reader(asyncio.Protocol):
    """One who is written to, once it has asked."""

    def __init__(self, listening: list[asyncio.Transport]) -> None:
        self._listening = listening
        self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, _: bytes) -> None:
        self._asked += 1
        if self._asked == 1:
            self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        elif self._asked == 2:
            self._transport.write(b"\x81" + bytes((len(READY),)) + READY)
            self._listening.append(self._transport)


class Pen:
    """Makes events like one. Numbers are padded to the length of its own, so the frame's length stands."""

    def __init__(self, frame: bytes) -> None:
        self._frame = bytearray(frame)
        (self._seq, self._stamp) = (one.span(1) for one in (_found(SEQ, frame), _found(STAMP, frame)))
        self._next = 1

    def event(self, now_s: float) -> bytes:
        self._frame[slice(*self._seq)] = b"%0*d" % (self._seq[1] - self._seq[0], self._next)
        stamp = f"{now_s:.9f}"[: self._stamp[1] - self._stamp[0]]
        self._frame[slice(*self._stamp)] = stamp.encode()
        self._next += 1
        return bytes(self._frame)


def _found(pattern: re.Pattern[bytes], frame: bytes) -> re.Match[bytes]:
    found = pattern.search(frame)
    assert found is not None, f"not in the frame: {pattern.pattern!r}"
    return found


async def write(pen: Pen, listening: list[asyncio.Transport], seconds: float, per_s: float) -> int:
    """All events of a turn; how many."""
    began_s = time.monotonic()
    made, total, gathered, next_s = 0, int(seconds * per_s), list[bytes](), began_s + GATHER_S
    while made < total or gathered:
        due_s = began_s + made / per_s if made < total else next_s
        await asyncio.sleep(max(0.0, min(due_s, next_s) - time.monotonic()))
        now_s = time.monotonic()
        if made < total and now_s >= due_s:
            gathered += [pen.event(now_s) for _ in range(AT_ONCE)]
            made += AT_ONCE
        if now_s >= next_s:
            joined, gathered, next_s = b"".join(gathered), [], now_s + GATHER_S
            for one in listening if joined else ():
                one.write(joined)
    return made


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    pen = Pen(json.loads(await reader.readline()).encode("latin-1"))
    listening: list[asyncio.Transport] = []
    served = await loop.create_server(lambda: Reader(listening), "127.0.0.1", 0, backlog=1024)
    _say({"port": served.sockets[0].getsockname()[1]})
    while line := (await reader.readline()).decode().split():
        before_s = time.process_time()
        made = await write(pen, listening, float(line[1]), float(line[2]))
        _say({"events": made, "cpu_s": time.process_time() - before_s})


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
