"""A client that never stops talking to the guest, in a process of its own: `python -m novacron.lab.talker`.

Every 2 ms it asks the guest's clock, without waiting for earlier answers, as a busy client does, and notes when each
answer comes. It is a process of its own so that nothing else of the demo or the bench delays it.

It is told what to do by lines on standard input and answers with lines of JSON (`conversation.Talker` is the other
end); at the end of its input it ends.

    move HOST PORT   connect there, again and again if need be; `{"event": "answered", "move": …, "at_ns": …}` follows
                     at the first answer of each connection, with the number of the move that led to it
    leave            hang up, and connect to nobody
    ask LINE         → {"answer": what the guest says to that line}
    begin            → {}   a window begins: gaps are forgotten, here and in the guest
    end              → measure.Window of the time since
"""

from __future__ import annotations

import argparse
import collections
import os
import selectors
import socket
import sys
import time
from typing import NamedTuple

import msgspec

from novacron.lab.guest.line import Status
from novacron.lab.measure import Sample, Window, stood_still_ns

PERIOD_NS = 2_000_000
MAX_OUTSTANDING = 4000
SAMPLES = 128
FIRST_ANSWER_NS = 100_000_000  # QEMU's user network accepts for a guest that does not listen yet: then try again
RETRY_NS = 5_000_000


class Pending(NamedTuple):
    """A line the guest still owes an answer to. kind: clock | ask | reset | status."""

    kind: str
    sent_ns: int


class Connection:
    """A stream to the guest: what was sent, and the answers in the same order."""

    def __init__(self, endpoint: tuple[str, int]) -> None:
        self.opened_ns = time.monotonic_ns()
        self.answered = False
        self.pending: collections.deque[Pending] = collections.deque()
        self._unsent = b""
        self._unread = b""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(endpoint)

    def say(self, kind: str, line: str) -> None:
        """Send a line, now or at the next `flush`. :raise OSError: the connection is broken."""
        self._unsent += line.encode() + b"\n"
        self.pending.append(Pending(kind, time.monotonic_ns()))
        self.flush()

    def flush(self) -> None:
        """Send what could not be sent before. :raise OSError: the connection is broken."""
        if not self._unsent:
            return
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            return
        self._unsent = self._unsent[sent:]

    def hear(self) -> list[tuple[Pending, str]]:
        """Answers that have come. :raise OSError: the connection is broken or closed."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the guest hung up")
        *lines, self._unread = (self._unread + data).split(b"\n")
        self.answered = self.answered or bool(lines)
        return [(self.pending.popleft(), line.decode()) for line in lines]


class Measuring:
    """The window under way: what is kept of the answers since `begin`."""

    def __init__(self, before: Sample, reconnects: int) -> None:
        self.before = before
        self.reconnects = reconnects
        self.answers = 0
        self.longest_ns = 0
        self.asked_on: Connection | None = None  # which connection the status was asked on, once the end is wanted
        self.ending = False
        self.status: Status | None = None
        self.after: list[Sample] = []

    def note(self, sample: Sample, gap_ns: int) -> None:
        self.answers += 1
        self.longest_ns = max(self.longest_ns, gap_ns)
        if self.status is not None:  # the end was asked for: these measure the clock's offset
            self.after.append(sample)

    def window(self, reconnects: int) -> Window | None:
        """The result, once enough answers have come since the end was asked for."""
        if self.status is None or len(self.after) < SAMPLES:
            return None
        after = min(self.after, key=lambda sample: sample.round_trip_ns)
        return Window(
            answers=self.answers,
            reconnects=reconnects - self.reconnects,
            client_gap_ms=self.longest_ns / 1e6,
            stood_still_ms=stood_still_ns(self.before, after) / 1e6,
            tick_gap_ms=max(0.0, self.status.max_gap_us / 1e3 - self.status.tick_ms),
            round_trip_ms=self.before.round_trip_ns / 1e6,
            status=self.status,
        )


class Talker:
    """The loop: one connection, one period, one set of standing orders."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        self._orders = b""
        self._endpoint: tuple[str, int] | None = None
        self._connection: Connection | None = None
        self._connections = 0
        self._moves = 0
        self._retry_ns = 0
        self._last_answer_ns = 0
        self._recent: collections.deque[Sample] = collections.deque(maxlen=SAMPLES)
        self._measuring: Measuring | None = None
        self._done = False

    def run(self) -> None:
        due = time.monotonic_ns()
        while not self._done:
            now = time.monotonic_ns()
            if now >= due:
                self._speak(now)
                due = max(due + PERIOD_NS, now)
            for key, _ in self._selector.select(max(0, due - time.monotonic_ns()) / 1e9):
                if key.fd == sys.stdin.fileno():
                    self._read_orders()
                elif self._connection is not None and key.fileobj is self._connection.socket:
                    self._listen(self._connection)

    # -- the guest -----------------------------------------------------------------------------------------

    def _speak(self, now: int) -> None:
        connection = self._connection
        if connection is None:
            if self._endpoint is not None and now >= self._retry_ns:
                self._connection = Connection(self._endpoint)
                self._selector.register(self._connection.socket, selectors.EVENT_READ)
        elif not connection.answered and now - connection.opened_ns > FIRST_ANSWER_NS:
            self._hang_up()
        elif self._measuring is not None and self._measuring.ending and self._measuring.asked_on is not connection:
            self._measuring.asked_on = connection  # and again on the next one, should this one break before it answers
            self._say(connection, "status", "status")
        elif len(connection.pending) < MAX_OUTSTANDING and (connection.answered or not connection.pending):
            self._say(connection, "clock", "clock")
        else:
            self._say(connection)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._selector.unregister(self._connection.socket)
            self._connection.socket.close()
            for pending in self._connection.pending:
                if pending.kind == "ask":
                    _print({"error": "the connection broke"})
        self._connection = None
        self._retry_ns = time.monotonic_ns() + RETRY_NS

    def _say(self, connection: Connection, kind: str = "", line: str = "") -> None:
        """Say that line, if any, and what is still unsent."""
        try:
            if kind:
                connection.say(kind, line)
            else:
                connection.flush()
        except OSError:
            self._hang_up()

    def _listen(self, connection: Connection) -> None:
        fresh = not connection.answered
        try:
            answers = connection.hear()
        except OSError:
            self._hang_up()
            return
        now = time.monotonic_ns()
        if fresh and answers:
            self._connections += 1
            _print({"event": "answered", "move": self._moves, "at_ns": now})
        for pending, answer in answers:
            self._take(pending, answer, now)

    def _take(self, pending: Pending, answer: str, now: int) -> None:
        if pending.kind == "ask":
            _print({"answer": answer})
        elif pending.kind == "status" and self._measuring is not None and self._measuring.status is None:
            self._measuring.status = msgspec.json.decode(answer, type=Status)
        elif pending.kind == "clock":
            sample = Sample(pending.sent_ns, now, int(answer))
            self._recent.append(sample)
            if self._measuring is not None:
                self._measuring.note(sample, now - self._last_answer_ns)
                if (window := self._measuring.window(self._connections)) is not None:
                    self._measuring = None
                    _print(window)
            self._last_answer_ns = now

    # -- the orders ----------------------------------------------------------------------------------------

    def _read_orders(self) -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        self._done = not data
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            self._obey(line.decode())

    def _obey(self, order: str) -> None:
        verb, _, rest = order.partition(" ")
        if verb == "move":
            host, _, port = rest.rpartition(" ")
            self._endpoint = (host, int(port))
            self._moves += 1
            self._recent.clear()  # of another guest, perhaps
            self._hang_up()
            self._retry_ns = 0
        elif verb == "leave":
            self._endpoint = None
            self._hang_up()
        elif verb == "end" and self._measuring is not None:
            self._measuring.ending = True
        elif self._connection is None or not self._recent:
            _print({"error": "there is no connection to the guest"})
        elif verb == "ask":
            self._say(self._connection, "ask", rest)
        elif verb == "begin":
            before = min(self._recent, key=lambda sample: sample.round_trip_ns)
            self._measuring = Measuring(before, self._connections)
            self._say(self._connection, "reset", "gaps reset")
            _print({})


def _print(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Enter the namespace if one is given, then talk."""
    parser = argparse.ArgumentParser(prog="python -m novacron.lab.talker", description="Talk to a guest.")
    parser.add_argument("--namespace-fd", type=int, help="an inherited descriptor of a network namespace to be in")
    descriptor: int | None = parser.parse_args().namespace_fd
    if descriptor is not None:
        from novacron.lab.namespaces import enter  # here: it is not needed without one

        enter(descriptor)
    Talker().run()


if __name__ == "__main__":
    main()
