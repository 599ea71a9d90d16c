"""What can be set of a stream, and what has been measured of it."""

from __future__ import annotations

import msgspec

from novacron.agent.stream.channel import MAX_CHANNELS
from novacron.errors import InvalidInput


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream behaves.

    channels: parallel TCP connections. silence_s: a connection that is silent so long is broken, and made anew.
    deadline_s: so long may there be none at all before the stream fails. keep_bytes: at most so much is sent ahead of
    what has arrived, and kept to be sent again. window_bytes: at most so much of QEMU's stream is under way.
    """

    channels: int = 2
    silence_s: float = 4.0
    deadline_s: float = 60.0
    keep_bytes: int = 32 << 20
    window_bytes: int = 32 << 20

    def check(self) -> Settings:
        """Itself. :raise InvalidInput: out of bounds."""
        bounds = {
            "channels": (1, MAX_CHANNELS),
            "silence_s": (0.05, 600),
            "deadline_s": (0.1, 86_400),
            "keep_bytes": (1 << 20, 1 << 30),
            "window_bytes": (4 << 20, 1 << 30),
        }
        for field, (least, most) in bounds.items():
            if not least <= getattr(self, field) <= most:
                raise InvalidInput.field(field, "is out of bounds", f"give {least:g} to {most:g}")
        return self


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream has come to so far.

    raw_bytes: of QEMU's stream; wire_bytes: sent and received of ours, without what TLS and TCP add (about 4 %).
    zero_pages, pages: found in it; held_pages: of those pages, not sent since the other side had them.
    reconnects: channels made anew. link_bytes_per_s: what the link was measured to carry; None: it was never full.
    level: zstd's at the end.
    """

    raw_bytes: int = 0
    wire_bytes: int = 0
    pages: int = 0
    zero_pages: int = 0
    held_pages: int = 0
    reconnects: int = 0
    link_bytes_per_s: float | None = None
    level: int = 0

    @property
    def ratio(self) -> float:
        """How many times fewer bytes went over the wire."""
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else 1.0
