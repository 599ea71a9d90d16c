"""A way between agents and one server that a test bends while both use it: silent in one direction, late, saying twice.

It passes bytes between two unix sockets. Of WebSockets it knows where a frame ends, so it repeats whole frames only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

CHUNK_BYTES = 1 << 16
BINARY_WHOLE = 0x82
GREETING_FRAMES = 1  # Hello, Welcome: neither is ever said twice on one line


@dataclasses.dataclass
class Bends:
    """deaf: nothing reaches the server; mute: nothing comes from it. Both ends stay open. delay_s: each chunk is so
    late; repeat: each frame that is a message of ours is said twice.
    """

    deaf: bool = False
    mute: bool = False
    delay_s: float = 0.0
    repeat: bool = False


class Passage:
    """`bends` may be changed at any time; what was held back meanwhile comes after."""

    def __init__(self, onward: Path) -> None:
        self._onward = onward
        self.repeated = 0
        self.bends = Bends()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_unix_connection(str(self._onward))
            ways = {
                asyncio.create_task(self._carry(reader, back, to_server=True)),
                asyncio.create_task(self._carry(there, writer, to_server=False)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                back.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        frames = Frames()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                pieces = frames.split(data)
                while self.bends.deaf if to_server else self.bends.mute:
                    await asyncio.sleep(0.02)
                if self.bends.delay_s:
                    await asyncio.sleep(self.bends.delay_s)
                for piece, is_message in pieces:
                    writer.write(piece)
                    if is_message and self.bends.repeat:
                        writer.write(piece)
                        self.repeated += 1
                await writer.drain()


class Frames:
    """Cuts one direction of a connection into what may be repeated and what may not."""

    def __init__(self) -> None:
        self._rest = b""
        self._messages = 0
        self._in_frames = False

    def split(self, data: bytes) -> list[tuple[bytes, bool]]:
        """What can be passed on, and whether each piece is one whole message of ours."""
        self._rest += data
        found: list[tuple[bytes, bool]] = []
        if not self._in_frames:
            head, ended, _ = self._rest.partition(b"\r\n\r\n")
            if not ended:
                return []
            if b"upgrade: websocket" not in head.lower():
                piece, self._rest = self._rest, b""
                return [(piece, False)]
            self._in_frames = True
            found.append((head + ended, False))
            self._rest = self._rest[len(head) + len(ended) :]
        while (size := frame_bytes(self._rest)) is not None and len(self._rest) >= size:
            piece, self._rest = self._rest[:size], self._rest[size:]
            is_ours = piece[0] == BINARY_WHOLE
            found.append((piece, is_ours and self._messages >= GREETING_FRAMES))
            self._messages += is_ours
        return found


def frame_bytes(data: bytes) -> int | None:
    """How long the WebSocket frame is that begins there; None: too little of it is there to say."""
    if len(data) < 2:
        return None
    size, at = data[1] & 0x7F, 2
    if size >= 126:
        wide = 2 if size == 126 else 8
        if len(data) < at + wide:
            return None
        size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
    return at + size + (4 if data[1] & 0x80 else 0)


@contextlib.asynccontextmanager
async def passage(entry: Path, onward: Path) -> AsyncIterator[Passage]:
    """Takes connections at `entry`, for as long as the block runs."""
    made = Passage(onward)
    listening = await asyncio.start_unix_server(made.serve, str(entry))
    try:
        yield made
    finally:
        listening.close()
