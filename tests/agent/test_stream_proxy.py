"""Both ends of a stream: the target gets what was sent and nothing else; lines break, caches rot, caps change."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from novacron.agent.stream.cache import PageCache, Scope
from novacron.agent.stream.figures import Settings
from novacron.errors import DeadlineExceeded, MigrationFailed, NovaCronError
from tests.agent import stream_bytes as made
from tests.agent.stream_ends import Ends, ends
from tests.agent.waiting import until

pytestmark = pytest.mark.anyio
QUICK = Settings(channels=2, silence_s=0.3, deadline_s=20)


@pytest.fixture
def scope(tmp_path: Path) -> Iterator[Scope]:
    cache = PageCache(tmp_path, 32 << 20)
    yield cache.scope("tests")
    cache.close()


def pages(seed: int, count: int = 1500) -> list[bytes]:
    return made.contents(random.Random(seed), count)


async def moved(ends: Ends, stream: bytes, *, stop_bytes: int = 0) -> None:
    """It arrives whole, and both ends know it."""
    assert await ends.send(stream, stop_bytes=stop_bytes) == b"greeting goodbye"
    sent, received = await ends.sender.wait(), await ends.receiver.wait()
    assert bytes(ends.target.came) == stream
    assert sent.raw_bytes == received.raw_bytes == len(stream)
    assert sent.held_pages == received.held_pages


async def test_a_stream_arrives_smaller_and_whole() -> None:
    async with ends() as both:
        await moved(both, made.stream(pages(1)))
        figures = both.sender.figures()
    assert figures.ratio > 1.7  # half of what is not empty does not pack
    assert figures.zero_pages > 300
    assert figures.held_pages == 0


async def test_what_an_earlier_guest_brought_is_not_sent_again(scope: Scope) -> None:
    like, alone = pages(1), 20_000  # the piece in which it stops may be sent unasked, and then is not kept
    async with ends(scope) as both:
        await moved(both, made.stream(like), stop_bytes=alone)
        first = both.sender.figures()
    dice = random.Random(9)
    other = [*dice.sample(like, len(like)), *pages(2, 40)]
    async with ends(scope) as both:
        await moved(both, made.stream(other, 2), stop_bytes=alone)
        second = both.sender.figures()
    assert second.wire_bytes < first.wire_bytes / 6
    assert second.held_pages > 900


async def test_a_guest_that_stands_still_waits_for_no_answer_but_is_not_sent_whole(scope: Scope) -> None:
    """The link is filled first; behind that pages are asked about as ever."""
    like = pages(1)
    async with ends(scope) as both:
        await moved(both, made.stream(like))
    async with ends(scope) as both:
        await moved(both, made.stream(like, at_the_end=400))  # within what is never asked about
        assert 0 < both.sender.figures().held_pages < 800
    async with ends(scope) as both:
        await moved(both, made.stream(like, at_the_end=1490))
        assert both.sender.figures().held_pages > 400


async def test_pages_a_running_guest_waits_for_are_never_asked_about(scope: Scope) -> None:
    like = pages(1)
    async with ends(scope) as both:
        await moved(both, made.stream(like))
    async with ends(scope) as both:
        await moved(both, made.postcopy([], like))
        assert both.sender.figures().held_pages == 0
        assert both.sender.figures().pages > 900


async def test_image_blocks_are_not_sent_even_once(scope: Scope, tmp_path: Path) -> None:
    blocks = pages(1)
    (tmp_path / "image").write_bytes(b"".join(blocks))
    scope.learn(tmp_path / "image")
    async with ends(scope) as both:
        await moved(both, made.stream(random.Random(1).sample(blocks, len(blocks))))
        assert both.sender.figures().wire_bytes < 400_000


async def test_a_stream_it_does_not_understand_arrives_too(scope: Scope) -> None:
    garbage = random.Random(1).randbytes(3_000_000)
    async with ends(scope) as both:
        await moved(both, garbage)
        assert both.sender.figures().pages == 0


@pytest.mark.parametrize("channels", [1, 2, 5])
async def test_a_cut_line_carries_on_where_it_was(scope: Scope, channels: int) -> None:
    stream = made.stream(pages(1, 4000))
    settings = Settings(channels=channels, silence_s=0.3, deadline_s=20)
    async with ends(scope, settings, cap=4 << 20) as both:
        moving = asyncio.create_task(moved(both, stream))
        for number in range(1, 4):
            await until(lambda part=number: len(both.target.came) > part * len(stream) // 5)
            both.relay.cut()
            before = both.relay.made
            both.relay.mend()
            await until(lambda made_before=before: both.relay.made >= made_before + channels)
        both.sender.set_cap(None)
        await moving
        assert both.sender.figures().reconnects >= channels


async def test_a_line_that_falls_silent_is_made_anew(scope: Scope) -> None:
    stream = made.stream(pages(1, 4000))
    async with ends(scope, QUICK, cap=4 << 20) as both:
        moving = asyncio.create_task(moved(both, stream))
        await until(lambda: len(both.target.came) > len(stream) // 4)
        both.relay.deafen()
        await until(lambda: both.relay.made > QUICK.channels)
        both.relay.cut()
        both.relay.mend()
        both.sender.set_cap(None)
        await moving


async def test_a_cut_longer_than_the_deadline_fails_both_and_tells_both_qemus() -> None:
    settings = Settings(silence_s=0.2, deadline_s=0.6)
    async with ends(None, settings, cap=1 << 20) as both:
        sending = asyncio.create_task(both.send(made.stream(pages(1))))
        await until(lambda: len(both.target.came) > 100_000)
        both.relay.cut()
        with pytest.raises(DeadlineExceeded):
            await both.sender.wait()
        with pytest.raises(DeadlineExceeded):
            await both.receiver.wait()
        await both.target.over.wait()
        assert await sending == b"greeting ", "the return path ends where it should not"
        assert len(both.target.came) < len(made.stream(pages(1)))


async def test_a_rotten_cache_costs_bytes_and_nothing_else(tmp_path: Path) -> None:
    cache = PageCache(tmp_path, 32 << 20)
    scope, like = cache.scope("tests"), pages(1)
    async with ends(scope) as both:
        await moved(both, made.stream(like))
        first = both.sender.figures()
    for at in range(0, os.fstat(cache.fileno()).st_size, 4096):
        byte = os.pread(cache.fileno(), 1, at + 77)
        os.pwrite(cache.fileno(), bytes([byte[0] ^ 0x10]), at + 77)
    async with ends(scope) as both:
        await moved(both, made.stream(like, 2))
        second = both.sender.figures()
    assert second.held_pages <= first.held_pages
    assert second.wire_bytes > first.wire_bytes * 0.9
    cache.close()


async def test_a_wrong_page_never_reaches_qemu(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that came past the proof of its key: the piece as a whole is proved too."""
    like = pages(1)
    async with ends(scope) as both:
        await moved(both, made.stream(like))
    take = scope.take

    def bent(keys: Sequence[bytes]) -> list[bytes | None]:
        return [page and page[:-1] + bytes([page[-1] ^ 1]) for page in take(keys)]

    monkeypatch.setattr(scope, "take", bent)
    stream = made.stream(like)
    async with ends(scope) as both:
        sending = asyncio.create_task(both.send(stream))
        for end in (both.sender, both.receiver):
            with pytest.raises(MigrationFailed, match="not what the source sent"):
                await end.wait()
        await both.target.over.wait()
        await asyncio.wait({sending})
        assert stream.startswith(bytes(both.target.came))


async def test_the_cap_holds_and_changes_as_it_runs() -> None:
    noise = random.Random(1).randbytes(3 << 20)
    async with ends(cap=0) as both:
        moving = asyncio.create_task(moved(both, noise))
        await until(lambda: both.sender.figures().raw_bytes > 1 << 20)
        sent_without = len(both.target.came)
        assert sent_without <= 64 << 10
        both.sender.set_cap(1 << 20)
        began = time.monotonic()
        await until(lambda: len(both.target.came) > 1 << 20)
        slow_s = time.monotonic() - began
        both.sender.set_cap(None)
        began = time.monotonic()
        await moving
        quick_s = time.monotonic() - began
    assert slow_s > 0.7
    assert quick_s < 2 * slow_s  # twice as much: it would take that long at the cap


async def test_return_path_bytes_do_not_wait_for_contents() -> None:
    async with ends(cap=0) as both:
        reader, writer = await both.connect()
        writer.write(made.stream(pages(1)))
        assert await reader.readexactly(9) == b"greeting "
        assert both.target.writer is not None
        both.target.writer.write(b"at once")
        assert await reader.readexactly(7) == b"at once"
        writer.close()


async def test_a_target_that_talks_without_end_is_made_to_wait() -> None:
    """Its QEMU may be in the hands of a guest: what it says is not piled up in the agent's memory."""
    talk = 16 << 20
    async with ends(settings=Settings(silence_s=60)) as both:
        reader, writer = await both.connect()
        writer.write(made.HEAD)
        await reader.readexactly(9)
        both.relay.deafen()
        assert both.target.writer is not None
        transport = both.target.writer.transport
        both.target.writer.write(bytes(talk))
        seen = [talk, talk - 1]
        while seen[-1] != seen[-10:][0] or len(seen) < 12:
            await asyncio.sleep(0.02)
            seen.append(transport.get_write_buffer_size())
        assert seen[-1] > talk // 2
        both.relay.mend()
        assert len(await reader.readexactly(talk)) == talk
        writer.close()


async def test_a_source_that_gives_up_ends_the_target_in_order() -> None:
    stream = made.stream(pages(1))
    async with ends() as both:
        reader, writer = await both.connect()
        writer.write(stream[: len(stream) // 2])
        await writer.drain()
        writer.write_eof()
        assert await reader.read() == b"greeting goodbye"
        await both.sender.wait()
        await both.receiver.wait()
        assert bytes(both.target.came) == stream[: len(stream) // 2]


async def test_a_target_that_dies_fails_the_source() -> None:
    async with ends(cap=1 << 20) as both:
        reader, writer = await both.connect()
        feeding = asyncio.create_task(_feed(writer, made.stream(pages(1, 6000))))
        await until(lambda: len(both.target.came) > 100_000)
        assert both.target.writer is not None
        both.target.writer.transport.abort()
        with pytest.raises(MigrationFailed, match="QEMU closed its connection"):
            await both.sender.wait()
        await hung_up(reader)
        await asyncio.wait({feeding})


async def hung_up(reader: asyncio.StreamReader) -> None:
    """The other side has closed: in order, or with bytes unread."""
    with contextlib.suppress(ConnectionError):
        await reader.read()


async def _feed(writer: asyncio.StreamWriter, stream: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(stream)
        await writer.drain()


async def test_nobody_else_is_let_in() -> None:
    settings = Settings(silence_s=0.3, deadline_s=0.8)
    async with ends(None, settings, secret=os.urandom(32)) as both:
        await both.connect()
        with pytest.raises(NovaCronError):
            await both.sender.wait()
        assert both.target.writer is None, "the target's QEMU was never spoken to"


async def test_a_second_connection_of_qemu_is_refused() -> None:
    async with ends() as both:
        reader, writer = await both.connect()
        writer.write(made.HEAD)
        await reader.readexactly(9)
        try:
            other, _ = await both.connect()
        except OSError:
            pass  # the door is closed behind the first
        else:
            assert await other.read() == b""
        writer.close()


async def test_closing_leaves_nothing() -> None:
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    async with ends(cap=0) as both:
        reader, writer = await both.connect()
        writer.write(made.stream(pages(1)))
        await until(lambda: both.sender.figures().pages > 0)
    await hung_up(reader)
    left = asyncio.all_tasks() - tasks
    assert {task.get_name() for task in left if "stream" in task.get_name()} == set()
    assert {thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("stream")} == set()


async def test_the_memory_of_a_stream_is_given_back_with_it() -> None:
    """Also while Python collects no garbage: a window has 128 MiB."""
    stream = random.Random(1).randbytes(20 << 20)
    seen = []
    gc.disable()
    try:
        for _ in range(5):
            async with ends() as both:
                await moved(both, stream)
                both.target.came.clear()
            seen.append(resident_bytes())
    finally:
        gc.enable()
    assert seen[-1] - seen[1] < 40 << 20, seen


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
