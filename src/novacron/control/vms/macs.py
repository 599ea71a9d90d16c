"""MAC addresses for new cards: drawn until one is found that no VM has."""

from __future__ import annotations

from collections.abc import Callable

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.errors import NoRoom, Reason

PREFIX = (0x52, 0x4E, 0x43)
"""Locally administered, unicast: "RNC" with the local bit set."""
TRIES = 64
"""Of 100,000 VMs each draw meets one in 170 times."""

RandomBytes = Callable[[int], bytes]


class Macs:
    """For one request: none is given twice."""

    def __init__(self, records: Records, random_bytes: RandomBytes) -> None:
        self._records = records
        self._random_bytes = random_bytes
        self._given: set[str] = set()

    def new(self) -> str:
        """:raise NoRoom: none is found."""
        for _ in range(TRIES):
            mac = ":".join(f"{byte:02x}" for byte in (*PREFIX, *self._random_bytes(3)))
            if mac not in self._given and not self._records.marked(VMS, mac):
                self._given.add(mac)
                return mac
        raise NoRoom("no free MAC address was found", [Reason("macs.short", f"{TRIES} that were drawn are taken")])
