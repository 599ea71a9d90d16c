"""Frames of the WebSocket /api/v1/events, as JSON.

client → server  subscribe {object_types?, ids?, labels?, after?}     once; `after` = last seq seen
server → client  ready {seq}            live from here; 0 or more events have been replayed before it
                 event {…model.event.Event}
                 resync {seq, message}  changes after `after` are no longer kept: list again, then go on
                 error {code, message}  followed by a close
"""

from __future__ import annotations

import msgspec

from novacron.model.event import Event, ObjectType

MAX_FRAME_BYTES = 64 << 10


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="subscribe", forbid_unknown_fields=True):
    """Filters are joined by AND; an empty one lets everything pass. after: None = only what is new."""

    object_types: tuple[ObjectType, ...] = ()
    ids: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    after: int | None = None


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ready"):
    seq: int


class EventFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="event"):
    event: Event


class Resync(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="resync"):
    seq: int
    message: str


class ErrorFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="error"):
    code: str
    message: str


ToClient = Ready | EventFrame | Resync | ErrorFrame
