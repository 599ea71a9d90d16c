"""What the line between the ends is made of: lanes that lose nothing, a cap, a gauge, a window, pinned identities."""

from __future__ import annotations

import asyncio
import collections
import random
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.agent.stream.bucket import MIN_BURST_BYTES, Bucket
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.gauge import Gauge
from novacron.agent.stream.identity import End, context
from novacron.agent.stream.lanes import BULK, CHUNK_BYTES, Chunk, Incoming, Outgoing
from novacron.agent.stream.window import FIRST_BYTES, LEAST_BYTES, LEAST_PIECE_BYTES, LEAST_S, Window, piece_bytes
from novacron.errors import InvalidInput, Malformed


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_messages_arrive_once_and_in_order_whatever_channels_break(seed: int, channels: int) -> None:
    dice = random.Random(seed)
    messages = [dice.randbytes(dice.choice([0, 10, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])) for _ in range(12)]
    out, into = Outgoing(BULK), Incoming(64 << 20, 1 << 20)
    for message in messages:
        out.add(message)
    flying: dict[int, list[Chunk]] = {number: [] for number in range(channels)}
    names = {number: object() for number in flying}
    came: list[bytes] = []
    while not out.empty:
        number = dice.randrange(channels)
        happening = dice.random()
        if happening < 0.5 and out.waits:
            flying[number].append(out.pop(names[number]))
        elif happening < 0.8 and flying[number]:
            came += into.take(flying[number].pop(0))
        elif happening < 0.9:
            out.acknowledge(into.next)
        elif happening < 0.95:
            out.lost(names[number])
            flying[number], names[number] = flying[number][: dice.randint(0, 1)], object()
    assert came == messages
    assert (out.waiting_bytes, out.flying_bytes, into.early_bytes) == (0, 0, 0)


def test_what_no_sender_sends_is_refused() -> None:
    for into, first in ((Incoming(100_000, 50_000), 1), (Incoming(1 << 20, 50_000), 0)):
        with pytest.raises(Malformed):
            list(map(into.take, (Chunk(BULK, seq, False, bytes(CHUNK_BYTES)) for seq in range(first, 20))))
    with pytest.raises(Malformed):
        Outgoing(BULK).acknowledge(1)


@given(
    st.lists(st.tuples(st.floats(0.001, 2), st.integers(100_000, 10_000_000)), min_size=1, max_size=5),
    st.integers(1000, CHUNK_BYTES),
)
def test_no_more_goes_than_the_cap_allows_however_it_changes(spans: list[tuple[float, int]], frame: int) -> None:
    now, allowed, sent, most = 0.0, 0.0, 0, 0
    bucket = Bucket(now, spans[0][1])
    for lasts_s, cap in spans:
        bucket.set(now, cap)
        end, most = now + lasts_s, max(most, cap)
        while (wait_s := bucket.wait_s(now)) < end - now:
            now += wait_s
            if not bucket.wait_s(now):
                bucket.take(frame)
                sent += frame
        allowed += lasts_s * cap
        now = end
    assert sent <= allowed + max(MIN_BURST_BYTES, most * 0.02) + frame
    assert sent >= 0.9 * allowed - MIN_BURST_BYTES - 2 * frame - most * 0.03


def test_a_cap_of_nothing_waits_and_none_does_not() -> None:
    bucket = Bucket(0.0, 0)
    bucket.take(MIN_BURST_BYTES)
    assert bucket.wait_s(10.0) == float("inf")
    bucket.set(10.0, None)
    assert bucket.wait_s(10.0) == 0


def test_the_gauge_measures_only_a_busy_link() -> None:
    gauge = Gauge()
    for tick in range(20):
        gauge.note(tick * 0.1, 1_000_000, busy=True)
    assert gauge.bytes_per_s == pytest.approx(1e7, rel=0.01)
    for tick in range(20, 60):
        gauge.note(tick * 0.1, 10, busy=False)
    assert gauge.bytes_per_s == pytest.approx(1e7, rel=0.01)


def pass_through(window: Window, began_s: float, lasts_s: float, way_s: float, bytes_per_s: float) -> float:
    """Pieces of 256 KiB over a way so long and so wide, as many as the window lets; when the last has arrived."""
    piece, now, free_at, number = 256 << 10, began_s, began_s, int(began_s * 1e6)
    under_way: collections.deque[tuple[float, int]] = collections.deque()
    while now < began_s + lasts_s:
        while len(under_way) * piece < window.size_bytes:
            free_at = max(now, free_at) + piece / bytes_per_s
            number += 1
            window.enter(number, piece, now)
            under_way.append((free_at + way_s, number))
        now, arrived = under_way.popleft()
        window.leave(arrived, now)
    while under_way:
        now, arrived = under_way.popleft()
        window.leave(arrived, now)
    return now


def test_the_window_is_twice_what_the_way_holds() -> None:
    window = Window(64 << 20)
    for way_s, bytes_per_s in [(0.1, 100e6), (0.1, 20e6), (0.4, 50e6), (0.1, 100e6)]:
        now = pass_through(window, 0.0, 20.0, way_s, bytes_per_s)
        holds = bytes_per_s * (way_s + (256 << 10) / bytes_per_s)
        assert max(LEAST_BYTES, 1.2 * holds) <= window.size_bytes * 1.001 + 1
        assert window.size_bytes <= max(LEAST_BYTES, 3 * holds)
        window = Window(64 << 20)
        assert now >= 20


@pytest.mark.parametrize("bytes_per_s", [50e3, 1e6, 5e6])
def test_on_a_slow_link_the_window_is_what_passes_in_a_moment(bytes_per_s: float) -> None:
    piece = piece_bytes(bytes_per_s)
    assert LEAST_PIECE_BYTES <= piece <= max(LEAST_PIECE_BYTES, 0.1 * bytes_per_s)
    known, unknown = Window(32 << 20, bytes_per_s), Window(32 << 20)
    moment = max(2 * LEAST_PIECE_BYTES, 2 * LEAST_S * bytes_per_s)
    assert known.size_bytes <= moment < unknown.size_bytes == FIRST_BYTES
    for window in (known, unknown):
        pass_through(window, 0.0, 300.0, 0.01, bytes_per_s)
        assert window.size_bytes <= max(moment, 2.2 * (256 << 10))


def test_on_a_fast_link_pieces_are_whole() -> None:
    assert [piece_bytes(rate) for rate in (None, 12.5e6, 1e9)] == [1 << 20] * 3
    assert Window(32 << 20, 12.5e6).size_bytes == LEAST_BYTES


async def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Whether the two let each other in; a byte goes each way."""
    let_in = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            writer.write(b"x")
            let_in.set()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server) as door:
        try:
            reader, writer = await asyncio.open_connection(*door.sockets[0].getsockname(), ssl=client)
            writer.write(b"x")
            heard = await reader.read(1)
            version = writer.get_extra_info("ssl_object").version()
            writer.close()
        except (OSError, ssl.SSLError):
            return False
        assert version == "TLSv1.3"
        return heard == b"x" and let_in.is_set()


@pytest.mark.anyio
async def test_each_end_takes_only_the_other_end_of_its_own_migration() -> None:
    one, two = b"1" * 32, b"2" * 32
    assert await shake(context(one, End.TARGET), context(one, End.SOURCE))
    assert not await shake(context(one, End.TARGET), context(two, End.SOURCE))
    mixed = context(one, End.TARGET)  # trusts the source of `one`, and shows what `one` knows of the target
    assert not await shake(mixed, ssl._create_unverified_context()), "a client without a certificate"
    stranger = context(two, End.SOURCE)
    stranger.verify_mode = ssl.CERT_NONE
    assert not await shake(context(one, End.TARGET), stranger), "a client that trusts everybody"
    with pytest.raises(InvalidInput):
        context(b"short", End.SOURCE)


def test_settings_are_checked() -> None:
    assert Settings().check() == Settings()
    for wrong in (Settings(channels=0), Settings(silence_s=0), Settings(keep_bytes=1), Settings(deadline_s=1e9)):
        with pytest.raises(InvalidInput):
            wrong.check()
