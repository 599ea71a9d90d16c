"""Events as they happen: one stream that is dialled again when it breaks and goes on where it stopped."""

from __future__ import annotations

import msgspec

from novacron.client.flow import Flow, Give, Hear, Listen, Means, Rest
from novacron.clock import Clock
from novacron.errors import Unavailable, from_data
from novacron.model.event import Event
from novacron.wire.stream import ErrorFrame, EventFrame, Ready, Resync, Subscribe, ToClient

PATIENCE_S = 60.0

Heard = Event | Resync | Ready


class Listener:
    """One subscription through broken lines: it resumes after the last event it gave.

    patience_s: how long in a row the server may be away, once it has been there. What it gives besides events:
    `Ready` (what was missed has been given, from here on it is live) and `Resync` (something was missed: list again).
    """

    def __init__(self, subscribe: Subscribe, means: Means, clock: Clock, patience_s: float = PATIENCE_S) -> None:
        self._subscribe = subscribe
        self._means = means
        self._clock = clock
        self._patience_s = patience_s
        self._after = subscribe.after
        self._is_open = False
        self._failures = 0
        self._was_there = False
        self._away_since_s = 0.0

    def next(self, deadline_s: float | None) -> Flow[Heard | None]:
        """What is heard next; None when the clock reaches `deadline_s` (monotonic) first.

        :raise Unavailable: the server cannot be reached, or was away for longer than `patience_s`.
        :raise NovaCronError: the server refused the subscription.
        """
        while True:
            within_s = None if deadline_s is None else deadline_s - self._clock.monotonic_s()
            if within_s is not None and within_s <= 0:
                return None
            try:
                if not self._is_open:
                    yield Listen(msgspec.structs.replace(self._subscribe, after=self._after), within_s)
                    self._is_open = True
                frame: ToClient | None = yield Hear(within_s)
                if isinstance(frame, ErrorFrame):
                    raise from_data(msgspec.structs.asdict(frame))
            except Unavailable as wrong:
                self._is_open = False
                yield Rest(self._rest_after(wrong, within_s))
                continue
            if frame is None:
                return None
            heard = self._take(frame)
            if heard is not None:
                return heard

    def _take(self, frame: EventFrame | Ready | Resync) -> Heard | None:
        """Note how far the stream has come. None: seen before."""
        self._failures = 0
        self._was_there = True
        match frame:
            case EventFrame(event=event):
                if self._after is not None and event.seq <= self._after:
                    return None
                self._after = event.seq
                return event
            case Ready():
                self._after = max(frame.seq, self._after or 0)
                return frame
            case Resync():
                self._after = frame.seq
                return frame

    def _rest_after(self, wrong: Unavailable, within_s: float | None) -> float:
        """How long to wait before dialling again; raises when it is no use any more."""
        now_s = self._clock.monotonic_s()
        if self._failures == 0:
            self._away_since_s = now_s
        self._failures += 1
        if not self._was_there or now_s - self._away_since_s > self._patience_s:
            raise wrong
        rest_s = self._means.rest_s(self._failures)
        self._means.notice(f"{wrong.message}; trying again in {rest_s:.1f} s")
        return rest_s if within_s is None else min(rest_s, max(within_s, 0.0))


def listen(listener: Listener, *, until_live: bool) -> Flow[None]:
    """Give events, and a Resync where some were missed: for ever, or until all that had happened has been given."""
    while True:
        heard = yield from listener.next(None)
        if not isinstance(heard, Ready):
            yield Give(heard)
        elif until_live:
            return
