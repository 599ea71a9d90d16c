"""What every verb about a machine carries."""

from __future__ import annotations

import msgspec


class MachineVerb(msgspec.Struct, frozen=True, kw_only=True):
    """Names a machine and the ownership under which the caller speaks; an older one is refused."""

    vm_id: str
    generation: int
