"""How a store lies in etcd: which keys it has under its prefix, and how its revisions are counted.

    <prefix>/origin              made once: the format, the etcd cluster's id, where counting begins
    <prefix>/records/<key>       the records, and nothing else: what a watch follows
    <prefix>/slots/<writer>.<n>  written along with every change of records; see etcd_commit

etcd counts one revision for all that it keeps. Ours begin anew with each store: after the floor at its origin.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from novacron.control.store.base import Entry
from novacron.control.store.etcd_words_pb2 import KeyValue, RangeRequest, RangeResponse
from novacron.errors import StoreCorrupt

FORMAT = 1
Filling = Literal["filling", "whole"]


class Origin(msgspec.Struct, frozen=True):
    """The record in which a store says what it is.

    floor: the revision that came before its first; state: `filling` while a copy of another store is being made.
    """

    cluster_id: int
    floor: int = 0
    state: Filling = "whole"
    format: int = FORMAT


class Layout(msgspec.Struct, frozen=True):
    """Keys of a store under its prefix."""

    base: bytes

    @classmethod
    def under(cls, prefix: str) -> Layout:
        return cls(f"/{prefix}/".encode())

    @property
    def origin(self) -> bytes:
        return self.base + b"origin"

    @property
    def all(self) -> tuple[bytes, bytes]:
        return self.base, self.base + b"\xff"

    @property
    def records(self) -> bytes:
        return self.base + b"records/"

    @property
    def slots(self) -> bytes:
        return self.base + b"slots/"

    def record(self, key: bytes) -> bytes:
        return self.records + key

    def reach(self, bounds: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """A range of keys of the contract as one of etcd's."""
        return self.records + bounds[0], self.records + bounds[1]

    def text(self, key: bytes) -> str:
        """The contract's key of a record."""
        return key[len(self.records) :].decode()

    def newest_slot(self) -> RangeRequest:
        """Asks which change of records was the last."""
        low = self.slots
        last = RangeRequest(key=low, range_end=low + b"\xff", limit=1, keys_only=True)
        last.order, last.by = RangeRequest.DESCEND, RangeRequest.MOD
        return last


class Count(msgspec.Struct, frozen=True):
    """Our revisions and etcd's. start: etcd's revision of the origin; floor: ours there."""

    start: int
    floor: int

    def ours(self, revision: int) -> int:
        return revision - self.start + self.floor

    def theirs(self, revision: int) -> int:
        return revision - self.floor + self.start

    def expected(self, modified: int) -> int:
        """etcd's revision to compare with; one that no key can have when ours names none of this store's."""
        if modified == 0:
            return 0
        return self.theirs(modified) if modified > self.floor else -1

    def newest(self, found: RangeResponse) -> int:
        """What `Layout.newest_slot` answers, as a revision of ours: the floor when nothing was ever changed."""
        return self.ours(found.kvs[0].mod_revision) if found.kvs else self.floor

    def entry(self, key: str, found: KeyValue) -> Entry:
        return Entry(key, found.value, self.ours(found.create_revision), self.ours(found.mod_revision))


def read_origin(found: KeyValue, where: str) -> Origin:
    """:raise StoreCorrupt: it is none, or of a newer NovaCron."""
    try:
        origin = msgspec.json.decode(found.value, type=Origin)
    except msgspec.DecodeError as wrong:
        raise StoreCorrupt(f"what lies in {where} is no NovaCron store: give another prefix") from wrong
    if origin.format > FORMAT:
        raise StoreCorrupt(
            f"the store {where} has format {origin.format} and this program knows up to {FORMAT}:"
            " run the newer NovaCron that made it"
        )
    return origin
