"""Which servers this node keeps lines to: those it was given, those it found, and those that servers told it of.

One server may be known under several addresses; a node has one line to each server, so the better of them counts:
given before found before told. Whose an address is shows when a line to it is open, and is remembered.

What was learned is kept in `servers.json` in the state directory, so that a node finds the others when it starts
again and the one it was given is gone. Only a node that has joined learns: whatever tells it an address, who answers
there is proven by the cluster's CA.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from novacron.clock import Clock
from novacron.config import is_place
from novacron.durable import write_durably
from novacron.wire.discovery import MAX_PLACES
from novacron.wire.membership import ServerAt, Terms

FILE = "servers.json"
MAX_FILE_BYTES = 256 << 10
HOLD_S = 30.0
"""So long after a line to a server broke it is dialled under the same address alone: it is likely starting again."""

FORGOTTEN_AFTER_S = 3600.0
"""A server that was told of, and of which those that still tell have said nothing for so long, has left."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    told: tuple[ServerAt, ...] = ()
    found: dict[str, tuple[str, ...]] = {}  # by source
    owners: dict[str, str] = {}  # by address: whose it was, when last a line to it was open


class Servers:
    """Answers `wanted` at any time; `changed` is set when that may be another answer than before."""

    def __init__(self, given: tuple[str, ...], file: Path | None, clock: Clock) -> None:
        """file: where what is learned is kept; None: nothing is learned."""
        self._given = given
        self._file = file
        self._clock = clock
        self._log = structlog.get_logger("servers")
        self.changed = asyncio.Event()
        self._written = kept = self._read()
        now_s = clock.monotonic_s()
        self._told = {one.id: (one.address, now_s) for one in kept.told}
        self._last_told_s = now_s
        self._found = dict(kept.found)
        self._owners = dict(kept.owners)
        self._open: set[str] = set()
        self._seen_s = dict.fromkeys(kept.owners, now_s)  # when a line to the address was last open

    # -- what is asked -------------------------------------------------------------------------------------

    def wanted(self) -> tuple[str, ...]:
        """The addresses to which a line is to be kept now."""
        self._forget()
        taken: set[str] = set()
        wanted = []
        for address in self._ranked():
            owner = self._owners.get(address, "")
            if owner and owner in taken:
                continue
            wanted.append(address)
            if owner and self._is_near(address):
                taken.add(owner)
        return tuple(wanted)

    def addresses(self) -> tuple[str, ...]:
        """All that are wanted, those first to which a line is open."""
        return tuple(sorted(self.wanted(), key=lambda address: address not in self._open))

    def _ranked(self) -> tuple[str, ...]:
        found = (address for addresses in self._found.values() for address in addresses)
        told = (address for _, (address, _) in sorted(self._told.items()))
        return tuple(dict.fromkeys((*self._given, *found, *told)))

    def _is_near(self, address: str) -> bool:
        seen_s = self._seen_s.get(address)
        return address in self._open or (seen_s is not None and self._clock.monotonic_s() - seen_s < HOLD_S)

    def _forget(self) -> None:
        """Measured up to the last word, not up to now: while nobody tells anything nothing is forgotten."""
        self._told = {
            server_id: (address, told_s)
            for server_id, (address, told_s) in self._told.items()
            if self._last_told_s - told_s < FORGOTTEN_AFTER_S or address in self._open
        }

    # -- what is learned -----------------------------------------------------------------------------------

    def tell(self, places: Iterable[ServerAt]) -> None:
        """A server that is proven says who lives, and where. Nothing said: nothing learned."""
        places = [one for one in places if is_place(one.address)][:MAX_PLACES]
        if self._file is None or not places:
            return
        now_s = self._last_told_s = self._clock.monotonic_s()
        for one in places:
            if self._told.get(one.id, ("", 0.0))[0] != one.address:
                self._log.info("a server is told of", server_id=one.id, address=one.address)
                self.changed.set()
            self._told[one.id] = (one.address, now_s)
            if one.address not in self._open:
                self._owners[one.address] = one.id

    def find(self, source: str, addresses: Iterable[str]) -> None:
        """That source names these now, in place of what it named before."""
        found = tuple(address for address in addresses if is_place(address))[:MAX_PLACES]
        if self._file is not None and self._found.get(source) != found:
            self._log.info("servers are found", source=source, addresses=found)
            self._found[source] = found
            self.changed.set()

    def opened(self, address: str, terms: Terms | None) -> None:
        """A line to it is open; terms: what the server said; None: it did not say who it is."""
        self._open.add(address)
        if terms is not None:
            self._owners[address] = terms.server_id
            self.tell(terms.places)
        self.changed.set()

    def closed(self, address: str) -> None:
        """The line to it is no longer open."""
        if address in self._open:
            self._open.discard(address)
            self._seen_s[address] = self._clock.monotonic_s()
            self.changed.set()

    # -- what is kept --------------------------------------------------------------------------------------

    async def save(self) -> None:
        """Write what was learned, if it is not written yet. A disk that takes nothing is logged; lines need none."""
        kept = self._kept()
        if self._file is None or kept == self._written:
            return
        try:
            await asyncio.to_thread(write_durably, self._file, msgspec.json.encode(kept))
            self._written = kept
        except OSError as wrong:
            self._log.warning("what was learned of servers cannot be written", why=str(wrong))

    def _kept(self) -> _Kept:
        return _Kept(
            told=tuple(ServerAt(id=one, address=address) for one, (address, _) in sorted(self._told.items())),
            found=dict(self._found),
            owners={address: self._owners[address] for address in self._ranked() if address in self._owners},
        )

    def _read(self) -> _Kept:
        """What was written; nothing, if it cannot be read: it is learned anew."""
        if self._file is not None and self._file.exists():
            with contextlib.suppress(OSError, msgspec.DecodeError), self._file.open("rb") as opened:
                return msgspec.json.decode(opened.read(MAX_FILE_BYTES), type=_Kept)
            self._log.warning("what was learned of servers cannot be read; it is learned anew", file=str(self._file))
        return _Kept()


class Contact:
    """What the line to one address tells of."""

    def __init__(self, servers: Servers, address: str) -> None:
        self._servers = servers
        self._address = address

    def opened(self, terms: Terms | None) -> None:
        self._servers.opened(self._address, terms)

    def told(self, places: tuple[ServerAt, ...]) -> None:
        self._servers.tell(places)

    def closed(self) -> None:
        self._servers.closed(self._address)
