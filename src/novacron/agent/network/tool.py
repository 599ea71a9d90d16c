"""Runs a small tool to its end: argument list, bounded time and output, no shell."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from novacron.child import heard
from novacron.errors import NovaCronError, Reason, Unsupported

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
    done = await heard(
        process,
        command[0],
        within_s=deadline_s,
        answer_bytes=max_bytes + 1,
        words_bytes=_MAX_WORDS,
        given=given,
    )
    if len(done.answer) > max_bytes:
        raise NovaCronError(f"{command[0]} wrote more than {max_bytes} bytes")
    return Outcome(process.pid, done.code, done.answer, done.words.decode(errors="replace").strip())
