"""The agent inside the guest, asked for one thing: to shut down in order.

What it answers is a guest's word: bounded, parsed, and believed only as far as it repeats our number.
"""

from __future__ import annotations

import asyncio
import socket

import msgspec

MAX_ANSWER_BYTES = 64 << 10
_MARK = b"\xff"  # begins an answer to guest-sync-delimited; never part of JSON


class _Synced(msgspec.Struct):
    """The answer that repeats our number."""

    answer: int = msgspec.field(name="return")


async def shut_down(to: socket.socket, number: int, deadline_s: float) -> bool:
    """Whether an agent answered on this connection and was told to power off. The socket is closed."""
    writer = None
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(sock=to, limit=MAX_ANSWER_BYTES)
            writer.write(_MARK + _line("guest-sync-delimited", {"id": number}))
            await reader.readuntil(_MARK)
            while True:  # answers to an earlier asker may come first
                if _repeats(await reader.readline(), number):
                    break
                if reader.at_eof():
                    return False
            writer.write(_line("guest-shutdown", {"mode": "powerdown"}))
            await writer.drain()
            return True
    except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    finally:
        if writer is not None:
            writer.close()
        else:
            to.close()


def _line(command: str, arguments: dict[str, object]) -> bytes:
    return msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n"


def _repeats(line: bytes, number: int) -> bool:
    try:
        return msgspec.json.decode(line.lstrip(_MARK), type=_Synced).answer == number
    except msgspec.DecodeError:
        return False
