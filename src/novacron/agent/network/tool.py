"""Runs a small tool to its end: argument list, bounded time and output, no shell."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from novacron.errors import DeadlineExceeded, NovaCronError, Reason, Unsupported

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_MAX_WORDS = 64 << 10


class Outcome(NamedTuple):
    """words: what it wrote to standard error; pid: its number while it ran."""

    pid: int
    code: int
    output: bytes
    words: str


def find(program: str) -> str | None:
    """Where a program is; those for administrators are not on everybody's path."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


def need(program: str, package: str) -> str:
    """:raise Unsupported: it is not installed."""
    found = find(program)
    if found is None:
        missing = Reason("program.missing", f"{program} is not installed", program, f"apt install {package}")
        raise Unsupported(f"this node has no {program}", [missing])
    return found


async def run(
    command: Sequence[str], given: bytes = b"", *, deadline_s: float = 10.0, max_bytes: int = 32 << 20
) -> Outcome:
    """:raise DeadlineExceeded: it did not end and was ended. :raise NovaCronError: it wrote more than `max_bytes`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(deadline_s):
            _, output, words = await asyncio.gather(
                _feed(process.stdin, given), _bounded(process.stdout, max_bytes), _bounded(process.stderr, _MAX_WORDS)
            )
            code = await process.wait()
    except TimeoutError as late:
        raise DeadlineExceeded(f"{command[0]} did not end within {deadline_s:g} s") from late
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Outcome(process.pid, code, output, words.decode(errors="replace").strip())


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


async def _bounded(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    got = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 16)):
        got += chunk
        if len(got) > limit:
            raise NovaCronError(f"a tool wrote more than {limit} bytes")
    return bytes(got)
