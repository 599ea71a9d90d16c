"""Conversations with the server, written once: generators that say what is to be done and never do it.

A flow yields one effect at a time and is sent its outcome; `sync_stage` and `async_stage` do the effects.

    Send → Response    one request and its answer
    SendPart → Response   one request that carries a part of a file
    Receive → Response    one request whose answer is (a part of) a file, handed to a sink as it comes
    Count → str        the sha256 of a whole file, in hex
    Rest → None        wait before trying again
    Listen → None      open the event stream (a new one; an old one is closed)
    Hear → ToClient    the next frame of the stream; None when none came in time
    Give → None        hand an item to whoever iterates

What fails is raised inside the flow as Unavailable (no connection, or it broke) or DeadlineExceeded.
"""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from novacron.client.call import Call, Page, Request, Response, answer_of, consistent, request_of
from novacron.client.problem import problem_of
from novacron.errors import Unavailable
from novacron.wire.stream import Subscribe, ToClient

TRIES = 4
FIRST_REST_S = 0.1
MAX_REST_S = 5.0

T = TypeVar("T")


class Send(msgspec.Struct, frozen=True):
    request: Request


class Source(Protocol):
    """A file that is sent from any place on."""

    def send(self, offset: int, length: int, to: socket.socket) -> None:
        """Its bytes there, into a blocking socket. :raise OSError: which failed."""
        ...

    def digest(self) -> str:
        """The sha256 of all of them, in hex; may block."""
        ...


class SendPart(msgspec.Struct, frozen=True):
    """The request's body are `length` bytes of the source from `offset` on."""

    request: Request
    source: Source
    offset: int
    length: int


class Count(msgspec.Struct, frozen=True):
    source: Source


class Sink(Protocol):
    """Where a file goes that comes from any place on."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer that brings bytes (200, 206) has begun. :raise NovaCronError: they are not wanted."""
        ...

    def take(self, piece: bytes) -> None:
        """Its next bytes; may block."""
        ...


class Receive(msgspec.Struct, frozen=True):
    """What is answered with 200 or 206 goes to the sink; the body of any other answer is in the Response."""

    request: Request
    sink: Sink


class Rest(msgspec.Struct, frozen=True):
    seconds: float


class Listen(msgspec.Struct, frozen=True):
    subscribe: Subscribe
    within_s: float | None


class Hear(msgspec.Struct, frozen=True):
    """within_s None: as long as it takes."""

    within_s: float | None


class Give(msgspec.Struct, frozen=True):
    item: Any


Effect = Send | SendPart | Receive | Count | Rest | Listen | Hear | Give
Outcome = Response | ToClient | str | None
Flow = Generator[Effect, Any, T]


class Means(msgspec.Struct, frozen=True):
    """What flows are handed: chance, and `notice`, told in a sentence of trouble that is being dealt with.

    tries: how often a call that may be repeated is sent before its failure counts.
    consistent: every call is (call.consistent).
    """

    rng: random.Random
    notice: Callable[[str], None]
    tries: int = TRIES
    consistent: bool = False

    def rest_s(self, failures: int) -> float:
        """How long to rest after that many failures: doubling, spread so that clients do not march in step."""
        most = min(MAX_REST_S, FIRST_REST_S * 2.0**failures)
        return self.rng.uniform(most / 2, most)


def perform(call: Call[T], means: Means, key: str = "") -> Flow[T]:
    """Make the call. It is tried again, with the same Idempotency-Key, where that is harmless.

    :raise NovaCronError: what the server refused, or why it could not be asked.
    """
    request = request_of(consistent(call) if means.consistent else call, key or secrets.token_urlsafe(18))
    tries = means.tries if call.is_repeatable else 1
    for attempt in range(1, tries + 1):
        try:
            response: Response = yield Send(request)
        except Unavailable as wrong:
            if attempt == tries:
                raise
            why = wrong.message
            rest_s = means.rest_s(attempt)
        else:
            if response.status != 503 or attempt == tries:
                return answer_of(call, response)
            why = problem_of(response.status, response.body).message
            rest_s = max(means.rest_s(attempt), _retry_after_s(response.headers))
        means.notice(f"{why}; trying again in {rest_s:.1f} s")
        yield Rest(rest_s)
    raise AssertionError("the last try returns or raises")


def each(call: Call[Page[T]], means: Means) -> Flow[None]:
    """Give every item of a list, page after page."""
    while True:
        page = yield from perform(call, means)
        for item in page.items:
            yield Give(item)
        if page.next_cursor is None:
            return
        call = msgspec.structs.replace(call, query={**call.query, "cursor": page.next_cursor})


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return min(float(text), MAX_REST_S) if text.isdecimal() else 0.0
