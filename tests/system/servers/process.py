"""A server process of a test: ready when it says so, ended by its own pid."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PATIENCE_S = 20.0


@contextlib.contextmanager
def serving(words: Sequence[object], log: Path, is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, ready; killed at the end. Its words are in `log`."""
    with log.open("wb") as said:
        process = subprocess.Popen([str(word) for word in words], stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    try:
        until(is_ready, f"{words[0]} to be ready", lambda: f"{process.poll()}: {log.read_text(errors='replace')}")
        yield process
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool], what: str, about: Callable[[], str] = str) -> None:
    """Look every few ms until it holds; fail loudly when it does not."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}: {about()}"
        time.sleep(0.01)


def run(*words: object) -> str:
    """What a command says; its failure is the test's."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}: {done.stderr}"
    return done.stdout
