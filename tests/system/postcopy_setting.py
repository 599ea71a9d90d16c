"""The machine's one word on whether machines' users have post-copy, among all test processes that want it so or so."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from novacron.agent.drivers.qemu.postcopy_probe import SETTING

BEFORE = Path("/run/novacron-tests-postcopy")
"""What the setting was before the first process changed it. Whoever wants post-copy holds a lock on it; the last takes
it away. What a killed process left there is put right by the next.
"""
PATIENCE_S = 300.0


@contextlib.contextmanager
def postcopy_allowed() -> Iterator[None]:
    """Let machines' users have post-copy, as far as this process may say so; as it was before, after the last."""
    try:
        with _turn():
            held = _begin()
    except OSError:
        yield  # not root, or a kernel without the setting: whoever needs it skips with the reason
        return
    try:
        yield
    finally:
        with _turn():
            _end(held)


@contextlib.contextmanager
def setting_is_ours() -> Iterator[None]:
    """Nobody else wants it so or so while this lasts; as it was before, afterwards. :raise OSError: we may not."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        with _turn():
            if not _is_wanted():
                before = SETTING.read_text()
                try:
                    yield
                finally:
                    SETTING.write_text(before)
                return
        assert time.monotonic() < give_up, "somebody wants post-copy all the time"
        time.sleep(0.05)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One process at a time looks and changes."""
    with SETTING.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _begin() -> int:
    if not os.access(SETTING, os.W_OK):
        raise PermissionError(f"{SETTING} is not ours to change")
    held = os.open(BEFORE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not os.fstat(held).st_size:
            os.write(held, SETTING.read_bytes())
        SETTING.write_text("1")
        fcntl.flock(held, fcntl.LOCK_SH)
    except OSError:
        os.close(held)
        raise
    return held


def _end(held: int) -> None:
    fcntl.flock(held, fcntl.LOCK_UN)
    if _alone_with(held):
        SETTING.write_bytes(os.pread(held, 16, 0))
        BEFORE.unlink()
    os.close(held)


def _is_wanted() -> bool:
    with contextlib.suppress(FileNotFoundError), BEFORE.open() as file:
        return not _alone_with(file.fileno())
    return False


def _alone_with(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
