"""Wall clocks of single processes that a test sets while they run; clocks that only count are left alone.

By a small library of our own (wall_clock.c) and not by libfaketime: that one of Debian 12 has `time.sleep` of
Python 3.11 fail, and reads its file now and then only.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from novacron.lab.processes import Child

SOURCE = Path(__file__).parent / "wall_clock.c"
COMPILE_S = 60.0
HOUR_S = 3600
TEN_YEARS_S = 3653 * 24 * HOUR_S
VARIABLES = ("LD_PRELOAD", "WALL_CLOCK")


class WallClocks:
    """One for each process that was started anew under it, by name. folder: where they are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "wall_clock.so"
        words = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(self._library), str(SOURCE)]
        subprocess.run(words, check=True, timeout=COMPILE_S)

    def start_again(self, child: Child, ahead_s: int = 0) -> None:
        """End the process and start it with a clock of its own."""
        child.kill()
        self.set(child, ahead_s)
        own = (str(self._library), str(self._file(child)))
        before = {name: os.environ.get(name) for name in VARIABLES}
        os.environ.update(zip(VARIABLES, own, strict=True))
        try:
            child.start_again()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def set(self, child: Child, ahead_s: int) -> None:
        """So far ahead of the true time it is from now on."""
        file = self._file(child)
        with file.open("r+b" if file.exists() else "xb") as open_file:
            open_file.write(ahead_s.to_bytes(8, "little", signed=True))

    def _file(self, child: Child) -> Path:
        return self._folder / f"{child.name}.clock"
