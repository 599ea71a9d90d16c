"""zstd over a whole stream: one context with a window of 128 MiB, so that a page's older self is still in sight."""

from __future__ import annotations

import sys
import time

from novacron.agent.stream import level
from novacron.agent.stream.level import Pace, level_for, worth_a_new_window
from novacron.errors import Malformed

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter as Parameter
    from compression.zstd import DecompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError
else:
    from backports.zstd import CompressionParameter as Parameter
    from backports.zstd import DecompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError

WINDOW_LOG = 27
JUDGE_FIRST_BYTES = 16 << 20
JUDGE_EVERY_BYTES = 96 << 20


class Press:
    """One stream's packing side. Not thread-safe."""

    def __init__(self, link_bytes_per_s: float | None = None) -> None:
        """link_bytes_per_s: what is known of the link beforehand."""
        self.level = level_for(Pace(level.FIRST, 0, 0, 0.0, link_bytes_per_s))
        self._judge_at = JUDGE_FIRST_BYTES
        self._from = self._to = 0
        self._busy_s = 0.0
        self._fresh = True
        self._made = self._new()

    def pack(self, body: bytes, link_bytes_per_s: float | None) -> tuple[bool, bytes]:
        """(whether a new window begins with it, what it became): complete, given all before it."""
        if self._from >= self._judge_at:
            self._judge(link_bytes_per_s)
        began_s = time.thread_time()
        packed = self._made.compress(body, ZstdCompressor.FLUSH_BLOCK)
        self._busy_s += time.thread_time() - began_s
        self._from += len(body)
        self._to += len(packed)
        fresh, self._fresh = self._fresh, False
        return fresh, packed

    def release(self) -> None:
        """Give its window's memory back now, not when the last that knows this is collected."""
        del self._made

    def _judge(self, link_bytes_per_s: float | None) -> None:
        self._judge_at = self._from + (JUDGE_EVERY_BYTES if link_bytes_per_s else JUDGE_FIRST_BYTES)
        better = level_for(Pace(self.level, self._from, self._to, self._busy_s, link_bytes_per_s))
        if worth_a_new_window(self.level, better):
            self.level = better
            self._judge_at = JUDGE_EVERY_BYTES
            self._begin()

    def _begin(self) -> None:
        self._from = self._to = 0
        self._busy_s = 0.0
        self._fresh = True
        self._made = self._new()

    def _new(self) -> ZstdCompressor:
        options: dict[int, int] = {
            Parameter.compression_level: self.level,
            Parameter.window_log: WINDOW_LOG,
            Parameter.enable_long_distance_matching: 1,
        }
        return ZstdCompressor(options=options)


class Unpacker:
    """The other side. Never gives more than it was told to expect."""

    def __init__(self) -> None:
        self._made = self._new()

    def unpack(self, packed: bytes, expected: int, *, fresh: bool) -> bytes:
        """:raise Malformed: it is something else than `expected` bytes."""
        if fresh:
            self._made = self._new()
        parts: list[bytes] = []
        size, data = 0, packed
        try:
            while size <= expected:
                part = self._made.decompress(data, max_length=expected + 1 - size)
                parts.append(part)
                size += len(part)
                data = b""
                if self._made.eof or self._made.needs_input or not part:
                    break
        except ZstdError as wrong:
            raise Malformed(f"a piece of the stream does not unpack: {wrong}") from wrong
        if size != expected:
            raise Malformed(f"a piece of the stream unpacks to another size than {expected}")
        return b"".join(parts)

    def release(self) -> None:
        """As `Press.release`."""
        del self._made

    @staticmethod
    def _new() -> ZstdDecompressor:
        return ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_LOG})
