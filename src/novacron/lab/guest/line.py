"""One TCP connection to the guest's service: a line out, a line back (README.md beside this file has the words)."""

from __future__ import annotations

import socket
import time
from types import TracebackType

import msgspec

from novacron.lab.failure import LabFailed

PORT = 7007
_MAX_ANSWER = 4096
_PAUSE_S = 0.01


class Status(msgspec.Struct, frozen=True):
    """What `status` answers. Times by the guest's own monotonic clock, which stands while the guest does."""

    name: str
    boot_id: str
    uptime_ms: int
    monotonic_ns: int
    tick_ms: float
    ticks: int
    max_gap_us: int
    gap_at_ns: int
    dirty_mib_per_s: int
    wss_mib: int
    pages_written: int
    pages_bad: int
    memory_free_mib: int


class GuestLine:
    """A blocking client, for tests and tools."""

    def __init__(self, host: str, port: int = PORT, timeout_s: float = 10.0) -> None:
        self._socket = socket.create_connection((host, port), timeout_s)
        self._answers = self._socket.makefile("rb")

    @classmethod
    def wait(cls, host: str, port: int = PORT, deadline_s: float = 60.0) -> GuestLine:
        """Connect as soon as the guest answers. A connection alone proves nothing: QEMU accepts for its guest.

        :raise LabFailed: it did not answer in time.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            line = None
            try:
                line = cls(host, port, timeout_s=1.0)
                line.ask("clock")
                line._socket.settimeout(10.0)
            except (OSError, LabFailed):
                if line:
                    line.close()
                time.sleep(_PAUSE_S)
            else:
                return line
        raise LabFailed.because(f"no guest answered on {host}:{port} within {deadline_s:g} s")

    def ask(self, request: str) -> str:
        """The guest's answer to one line.

        :raise LabFailed: it refused, or hung up.
        """
        self._socket.sendall(request.encode() + b"\n")
        answer = self._answers.readline(_MAX_ANSWER).decode().removesuffix("\n")
        if not answer:
            raise LabFailed.because(f"the guest hung up on {request!r}")
        if answer.startswith("error "):
            raise LabFailed.because(f"the guest refused {request!r}: {answer[6:]}")
        return answer

    def status(self) -> Status:
        return msgspec.json.decode(self.ask("status"), type=Status)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> GuestLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
