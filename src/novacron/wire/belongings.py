"""Verbs about what belongs to a machine and is no volume, when it moves between nodes that do not share their pool.

The files go from the source's line to the target's through the server, which keeps nothing of them: a few hundred KiB.
"""

from __future__ import annotations

import msgspec

from novacron.model.machine import Belonging
from novacron.wire.verb import MachineVerb

MAX_BYTES = 2 << 20
"""Of all files of a machine together: in a frame of the line they are a third larger."""


class PackBelongings(MachineVerb, frozen=True, kw_only=True):
    """(source) The files of a machine that stands still. with_tpm: else its state comes with memory. → Belongings"""

    migration_id: str
    with_tpm: bool = True


class Belongings(msgspec.Struct, frozen=True, kw_only=True):
    files: tuple[Belonging, ...] = ()


class UnpackBelongings(MachineVerb, frozen=True, kw_only=True):
    """(target) Have them ready for what `accept` is about to begin. Asked again: written again. → None"""

    migration_id: str
    files: tuple[Belonging, ...]


VERBS: dict[str, type[msgspec.Struct]] = {
    "migration.pack_belongings": PackBelongings,
    "migration.unpack_belongings": UnpackBelongings,
}
