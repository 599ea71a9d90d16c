"""The agent inside the guest, asked for two things: to shut down in order, and to freeze its file systems.

What it answers is a guest's word: bounded, parsed, and believed only as far as it repeats our number.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from novacron.errors import DeadlineExceeded, MonitorFailed, Reason

MAX_ANSWER_BYTES = 64 << 10
MAX_WORDS = 200  # of what it says went wrong
_MARK = b"\xff"  # begins an answer to guest-sync-delimited; never part of JSON
_BROKEN = (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class _Synced(msgspec.Struct):
    """The answer that repeats our number."""

    answer: int = msgspec.field(name="return")


class _Refusal(msgspec.Struct):
    desc: str = ""


class _Answer(msgspec.Struct):
    """To a command that answers, or is refused."""

    answer: Any = msgspec.field(default=None, name="return")
    error: _Refusal | None = None


async def shut_down(to: socket.socket, number: int, deadline_s: float) -> bool:
    """Whether an agent answered on this connection and was told to power off. The socket is closed."""
    line = _line("guest-shutdown", {"mode": "powerdown"})
    try:
        return await _converse(to, number, line, deadline_s, answers=False) is not None
    except (TimeoutError, *_BROKEN):
        return False


async def freeze(to: socket.socket, number: int, deadline_s: float) -> int:
    """How many of the guest's file systems stand still now, everything written. The socket is closed.

    :raise MonitorFailed: no agent answers there, or it refused. :raise DeadlineExceeded: it did not answer in time.
    In both cases some may be frozen: `thaw`.
    """
    return await _number_of(to, number, "guest-fsfreeze-freeze", deadline_s)


async def thaw(to: socket.socket, number: int, deadline_s: float) -> int:
    """How many of the guest's file systems go on that were frozen. Errors as for `freeze`."""
    return await _number_of(to, number, "guest-fsfreeze-thaw", deadline_s)


async def _number_of(to: socket.socket, number: int, command: str, deadline_s: float) -> int:
    told = await ask(to, number, command, {}, deadline_s)
    if not isinstance(told, int):
        raise MonitorFailed(f"the guest agent answered {command} with something unexpected")
    return told


async def ask(to: socket.socket, number: int, command: str, arguments: dict[str, object], deadline_s: float) -> Any:
    """What the agent answers: a guest's word, of any shape. The socket is closed. Errors as for `freeze`."""
    try:
        answer = await _converse(to, number, _line(command, arguments), deadline_s, answers=True)
    except TimeoutError:
        raise DeadlineExceeded(f"the guest agent did not answer {command} within {deadline_s:g} s") from None
    except _BROKEN as wrong:
        raise MonitorFailed(f"the guest agent cannot be spoken to: {wrong or 'it hung up'}") from wrong
    if answer is None:
        raise MonitorFailed("no guest agent answers")
    try:
        told = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError as wrong:
        raise MonitorFailed(f"the guest agent answered {command} with something unexpected") from wrong
    if told.answer is None or told.error is not None:
        words = "".join(sign for sign in (told.error.desc if told.error else "") if sign.isprintable())[:MAX_WORDS]
        raise MonitorFailed(f"the guest agent refused {command}", [Reason("guest_agent.refused", words or "no reason")])
    return told.answer


async def _converse(to: socket.socket, number: int, line: bytes, deadline_s: float, *, answers: bool) -> bytes | None:
    """The answer to one command (empty when none is waited for); None: nobody repeats our number.

    :raise TimeoutError: it took too long. Other errors: the connection broke. The socket is closed in any case.
    """
    writer = None
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(sock=to, limit=MAX_ANSWER_BYTES)
            writer.write(_MARK + _line("guest-sync-delimited", {"id": number}))
            await reader.readuntil(_MARK)
            while not _repeats(await reader.readline(), number):  # answers to an earlier asker may come first
                if reader.at_eof():
                    return None
            writer.write(line)
            await writer.drain()
            return await reader.readline() if answers else b""
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
