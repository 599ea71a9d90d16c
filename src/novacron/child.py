"""Hears a program out that was started: bounded in time and in words."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from novacron.errors import DeadlineExceeded


class Heard(msgspec.Struct, frozen=True):
    """How it ended, and the beginnings of what it said on stdout and stderr."""

    code: int
    answer: bytes
    words: bytes


async def heard(
    process: asyncio.subprocess.Process,
    program: str,
    *,
    within_s: float,
    answer_bytes: int,
    words_bytes: int,
    given: bytes = b"",
) -> Heard:
    """What it said by its end, given that on stdin. However this ends, the process has ended.

    :raise DeadlineExceeded: it was ended.
    """
    try:
        async with asyncio.timeout(within_s):
            _, answer, words = await asyncio.gather(
                _feed(process.stdin, given), _read(process.stdout, answer_bytes), _read(process.stderr, words_bytes)
            )
            return Heard(await process.wait(), answer, words)
    except TimeoutError as late:
        raise DeadlineExceeded(f"{program} did not end within {within_s:g} s") from late
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _feed(to: asyncio.StreamWriter | None, given: bytes) -> None:
    if to is None:
        return
    try:
        to.write(given)
        await to.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # its exit code and words say why
    finally:
        to.close()


async def _read(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """The beginning of what it says; the rest is read and thrown away, so that it never blocks."""
    kept = bytearray()
    while stream is not None and (piece := await stream.read(1 << 16)):
        kept += piece[: limit - len(kept)]
    return bytes(kept)
