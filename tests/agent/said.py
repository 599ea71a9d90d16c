"""A child of a test, asked and heard a line at a time."""

from __future__ import annotations

import contextlib
import subprocess

MANY = 200
"""Fed so often, a watchdog does not stop being fed."""


class Said:
    """A child whose words are read, a line each."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def ask(self, wish: str) -> str:
        """What is answered: the line that begins with `=`, whatever is logged before it."""
        self.tell(wish)
        while not (heard := self.hear()).startswith("= "):
            assert heard, "it has ended"
        return heard.removeprefix("= ")

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def until(self, word: str, times: int = 1) -> list[str]:
        """What is told until that word has come so often."""
        heard: list[str] = []
        while heard.count(word) < times:
            heard.append(self.hear())
            assert heard[-1], heard
            assert heard.count("fed") < MANY, "it is fed on and on"
        return heard

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(20)
