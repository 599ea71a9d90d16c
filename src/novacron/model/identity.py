"""Ids and names: ids are UUIDv7 (RFC 9562), so that they sort by birth; names are unique among their kind."""

from __future__ import annotations

import re
import uuid

from novacron.errors import InvalidInput

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$"
NAME_RULE = "1 to 63 characters: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
LABEL_KEY_PATTERN = r"^[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?$"
LABEL_VALUE_PATTERN = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
MAX_LABELS = 64
MAX_NAME = 63

_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


def new_id(unix_ms: int, random_bits: int) -> str:
    """A UUIDv7 from a wall-clock time in milliseconds and 74 random bits (both given, so that tests repeat)."""
    high = random_bits >> 62 & 0xFFF
    low = random_bits & (1 << 62) - 1
    return str(uuid.UUID(int=(unix_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id of ours (lower-case UUID)."""
    return _UUID.match(text) is not None


def check_name(text: str, field: str = "name") -> str:
    """`text` if it is a legal name, else InvalidInput that names `field`."""
    if _NAME.match(text) is None or is_id(text):
        raise InvalidInput.field(field, "is not a legal name", NAME_RULE)
    return text
