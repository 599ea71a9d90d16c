"""Messages between the two ends of a stream, once and in order, over however many channels live at the moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from novacron.agent.stream.bucket import Bucket
from novacron.agent.stream.channel import FRAME_BYTES, Channel
from novacron.agent.stream.ending import one_of
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.gauge import Gauge
from novacron.agent.stream.lanes import BULK, CONTROL, LANES, Chunk, Incoming, Outgoing
from novacron.agent.stream.messages import MAX_MESSAGE_BYTES, MAX_REASON_BYTES, Kind, message
from novacron.errors import DeadlineExceeded, Malformed, NovaCronError, Unavailable

ACK_WITHIN_S = 0.01
GOODBYE_S = 0.5
AHEAD_BYTES = 512 << 10
"""What waits to be sent: more would only be older when it goes."""
MAX_UNREAD_BYTES = 128 << 20
_ACK_FRAME_BYTES = FRAME_BYTES + 16


class _Carrier:
    """A living channel, and when it has to say something."""

    def __init__(self, channel: Channel, now_s: float) -> None:
        self.channel = channel
        self.kick = asyncio.Event()
        self.spoke_at_s = now_s
        self.ack_at_s: float | None = None


class Line:
    """One end of it. Fails once, for good: then every call raises the reason."""

    def __init__(self, settings: Settings, cap_bytes_per_s: int | None = None) -> None:
        self._settings = settings
        self._now = asyncio.get_running_loop().time
        self._bucket = Bucket(self._now(), cap_bytes_per_s)
        self._out = [Outgoing(lane) for lane in LANES]
        self._in = [Incoming(2 * settings.keep_bytes + MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES) for _ in LANES]
        self._came: list[asyncio.Queue[bytes | None]] = [asyncio.Queue() for _ in LANES]
        self._unread_bytes = 0
        self._carriers: dict[int, _Carrier] = {}
        self._moved = asyncio.Event()
        self._error: NovaCronError | None = None
        self._parting = False
        self._gauge = Gauge()
        self._alive_at_s = self._now()
        self.wire_bytes = 0

    # -- messages ------------------------------------------------------------------------------------------------

    def post(self, words: bytes) -> None:
        """Send a message about the stream, before all of its contents."""
        self._out[CONTROL].add(words)
        self._kick()

    async def tell(self, words: bytes) -> None:
        """Like `post`, for whoever could say too much; waits while enough is under way."""
        control = self._out[CONTROL]
        await self._until(lambda: control.waiting_bytes + control.flying_bytes < AHEAD_BYTES)
        self.post(words)

    async def send(self, contents: bytes) -> None:
        """Send contents; waits while enough are under way. :raise NovaCronError: the line has failed."""
        bulk = self._out[BULK]
        await self._until(
            lambda: (
                bulk.waiting_bytes < AHEAD_BYTES and bulk.waiting_bytes + bulk.flying_bytes < self._settings.keep_bytes
            )
        )
        bulk.add(contents)
        self._kick()

    async def receive(self, lane: int) -> bytes:
        """The next message on a lane. :raise NovaCronError: the line has failed."""
        came = await self._came[lane].get()
        if came is None:
            self._came[lane].put_nowait(None)
            raise self._error or Unavailable("the stream is closed")
        self._unread_bytes -= len(came)
        return came

    async def drained(self) -> None:
        """Everything sent has arrived. :raise NovaCronError: the line has failed."""
        await self._until(lambda: all(lane.empty for lane in self._out))

    # -- what it is like -----------------------------------------------------------------------------------------

    @property
    def arrived(self) -> tuple[int, int]:
        return (self._in[CONTROL].next, self._in[BULK].next)

    @property
    def link_bytes_per_s(self) -> float | None:
        """What the link carried when there was always something to send."""
        return self._gauge.bytes_per_s

    @property
    def expected_bytes_per_s(self) -> float | None:
        """What it will carry: measured, and not more than the cap."""
        known = [rate for rate in (self._gauge.bytes_per_s, self._bucket.bytes_per_s) if rate is not None]
        return min(known, default=None)

    def set_cap(self, bytes_per_s: int | None) -> None:
        """Contents go no faster from now on; None: as fast as they go."""
        self._bucket.set(self._now(), bytes_per_s)
        self._kick()

    def fail(self, error: NovaCronError) -> None:
        """End it, and everything that waits for it. The first reason stands."""
        if self._error is None:
            self._error = error
            for queue in self._came:
                queue.put_nowait(None)
            for carrier in self._carriers.values():
                carrier.channel.abort()
            self._kick()
            self._moved.set()

    @property
    def over(self) -> bool:
        """No channel is worth being made any more."""
        return self._parting or self._error is not None

    async def part(self, reason: str = "") -> None:
        """Say goodbye, and close the channels. reason: why it is not done; the other end fails with it."""
        self._parting = True
        if reason and self._error is None:
            self.post(message(Kind.FAIL, 0, reason.encode()[:MAX_REASON_BYTES]))
        with contextlib.suppress(NovaCronError, TimeoutError, OSError):
            async with asyncio.timeout(GOODBYE_S):
                if self._carriers:
                    await self._until(lambda: not self._out[CONTROL].waits)
                for carrier in list(self._carriers.values()):
                    await carrier.channel.acknowledge(self.arrived)
                    await carrier.channel.close()
        self.fail(Unavailable("the stream is closed"))

    async def watch(self) -> None:
        """Fail when there has been no channel for too long. Runs until cancelled."""
        while self._error is None:
            if self._carriers:
                self._alive_at_s = self._now()
            left = self._alive_at_s + self._settings.deadline_s - self._now()
            if left <= 0:
                self.fail(DeadlineExceeded(f"no connection to the other end for {self._settings.deadline_s:g} s"))
            else:
                await asyncio.sleep(min(left, self._settings.deadline_s / 10))

    # -- channels ------------------------------------------------------------------------------------------------

    async def carry(self, number: int, channel: Channel, arrived: tuple[int, int]) -> None:
        """Use a channel until it breaks. One with the same number takes the place of an earlier one.

        arrived: what has, as the other end told when the channel was made.
        """
        if (before := self._carriers.get(number)) is not None:
            self._lose(number, before)
        carrier = self._carriers[number] = _Carrier(channel, self._now())
        try:
            self._acknowledged(arrived)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._write(carrier))
                both.create_task(self._read(carrier))
        except* (OSError, EOFError, TimeoutError):
            pass  # broken; what it carried is sent again
        except* Malformed as wrong:
            self.fail(one_of(wrong))
        finally:
            if self._carriers.get(number) is carrier:
                self._lose(number, carrier)

    def _lose(self, number: int, carrier: _Carrier) -> None:
        del self._carriers[number]
        carrier.channel.abort()
        for lane in self._out:
            lane.lost(carrier)
        self._gauge.pause()
        self._kick()

    async def _write(self, carrier: _Carrier) -> None:
        breath_s = self._settings.silence_s / 3
        while self._error is None:
            carrier.kick.clear()
            now = self._now()
            speak_at_s = min(carrier.spoke_at_s + breath_s, carrier.ack_at_s or now + breath_s)
            if now >= speak_at_s:
                carrier.ack_at_s, carrier.spoke_at_s = None, now
                self.wire_bytes += _ACK_FRAME_BYTES
                await carrier.channel.acknowledge(self.arrived)
                continue
            wait_s = self._bucket.wait_s(now)
            chunk = self._next(carrier, contents=not wait_s)
            if chunk is not None:
                carrier.spoke_at_s = now
                self._bucket.take(FRAME_BYTES + len(chunk.payload))
                self.wire_bytes += FRAME_BYTES + len(chunk.payload)
                self._moved.set()
                await carrier.channel.send(chunk)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(speak_at_s - now, wait_s or breath_s)):
                    await carrier.kick.wait()

    def _next(self, carrier: _Carrier, *, contents: bool) -> Chunk | None:
        if self._out[CONTROL].waits:
            return self._out[CONTROL].pop(carrier)
        return self._out[BULK].pop(carrier) if contents and self._out[BULK].waits else None

    async def _read(self, carrier: _Carrier) -> None:
        while self._error is None:
            async with asyncio.timeout(self._settings.silence_s):
                frame = await carrier.channel.receive()
            if isinstance(frame, tuple):
                self.wire_bytes += _ACK_FRAME_BYTES
                self._acknowledged(frame)
                continue
            self.wire_bytes += FRAME_BYTES + len(frame.payload)
            for whole in self._in[frame.lane].take(frame):
                self._deliver(frame.lane, whole)
            if carrier.ack_at_s is None:
                carrier.ack_at_s = self._now() + ACK_WITHIN_S
                carrier.kick.set()

    def _deliver(self, lane: int, whole: bytes) -> None:
        self._unread_bytes += len(whole)
        if self._unread_bytes > MAX_UNREAD_BYTES:
            raise Malformed("the other end of the stream sends more than it may")
        self._came[lane].put_nowait(whole)

    def _acknowledged(self, upto: tuple[int, int]) -> None:
        freed = sum(lane.acknowledge(seq) for lane, seq in zip(self._out, upto, strict=True))
        self._gauge.note(self._now(), freed, busy=self._out[BULK].waiting_bytes >= AHEAD_BYTES // 2)
        self._moved.set()

    def _kick(self) -> None:
        for carrier in self._carriers.values():
            carrier.kick.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while self._error is None:
            if holds():
                return
            self._moved.clear()
            await self._moved.wait()
        raise self._error
