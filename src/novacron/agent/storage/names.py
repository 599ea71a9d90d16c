"""Names that volumes, snapshots and images may have: nothing else reaches a path, a command or a server."""

from __future__ import annotations

import re

from novacron.errors import InvalidInput
from novacron.model.identity import is_id

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def check_volume(volume_id: str) -> str:
    """`volume_id`, if it is an id. :raise InvalidInput"""
    return _check_id(volume_id, "volume_id")


def check_snapshot(snapshot_id: str) -> str:
    """`snapshot_id`, if it is an id. :raise InvalidInput"""
    return _check_id(snapshot_id, "snapshot_id")


def is_digest(text: str) -> bool:
    """Whether it is a sha256 digest as we write it."""
    return _DIGEST.match(text) is not None


def check_digest(digest: str) -> str:
    """`digest`, if it is one. :raise InvalidInput"""
    if not is_digest(digest):
        raise InvalidInput.field("digest", "is not a sha256 digest", "give 64 hexadecimal digits")
    return digest


def _check_id(text: str, field: str) -> str:
    if not is_id(text):
        raise InvalidInput.field(field, "is not an id", "give a UUID")
    return text
