"""Failpoints: named places where a test has this process die or stand still. Without a directory to look in, nothing.

NOVACRON_FAILPOINTS names a directory; a file in it is armed: its name is that of the place (`migration.send:after`),
its text what is to happen there, once: `crash` (SIGKILL) or `freeze` (SIGSTOP). Whoever passes it first takes it away.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "NOVACRON_FAILPOINTS"
_SIGNALS = {"crash": signal.SIGKILL, "freeze": signal.SIGSTOP}
_directory = os.environ.get(VARIABLE, "")


def reach(place: str) -> None:
    """This process has come to `place`. Returns at once unless that is armed; frozen, when somebody thaws it."""
    if not _directory:
        return
    armed = Path(_directory, place)
    try:
        what = armed.read_text().strip()
        armed.unlink()
    except FileNotFoundError:
        return  # not armed, or another process was first
    os.kill(os.getpid(), _SIGNALS[what])
