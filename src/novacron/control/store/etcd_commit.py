"""One commit as one etcd transaction that may be sent twice and is carried out once.

Each commit borrows a slot: a key of this process that no other writes. The transaction expects the slot as it was
last seen and puts a mark into it. Sent again after a silence, it is either carried out now, or finds its own mark
and so the revision at which it was carried out before. One that arrives late finds another slot and does nothing.
The newest slot is also the answer to which revision of records is the last: etcd counts what others write, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from novacron.control.store import bounds
from novacron.control.store.base import Delete, Expect, Put
from novacron.control.store.etcd_layout import Count, Layout
from novacron.control.store.etcd_line import ATTEMPT_S, LONG_ATTEMPT_S, TXN, Line
from novacron.control.store.etcd_words_pb2 import (
    Compare,
    DeleteRequest,
    KeyValue,
    Op,
    PutRequest,
    RangeRequest,
    TxnRequest,
    TxnResponse,
)
from novacron.errors import CompareFailed, StoreUnavailable

SLOTS = 64  # commits under way at once; more wait
BIG_BYTES = 1 << 20  # of a transaction that may take longer than others


class Slot(msgspec.Struct):
    """A key that one commit at a time may write. known: etcd's revision of its last change, as last seen."""

    key: bytes
    known: int = 0
    commits: int = 0

    def mark(self) -> bytes:
        """A value no other commit puts into it."""
        self.commits += 1
        return str(self.commits).encode()


class Slots:
    """The slots of one process, made when they are needed; the last used one first, so that few are."""

    def __init__(self, layout: Layout, writer: str) -> None:
        self._free = [Slot(layout.slots + f"{writer}.{number}".encode()) for number in reversed(range(SLOTS))]
        self._permits = asyncio.Semaphore(SLOTS)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Slot]:
        async with self._permits:
            slot = self._free.pop()
            try:
                yield slot
            finally:
                self._free.append(slot)


class Committer:
    """Carries out commits over a line."""

    def __init__(self, line: Line, layout: Layout, count: Count, slots: Slots) -> None:
        self._line = line
        self._layout = layout
        self._count = count
        self._slots = slots

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect]) -> int:
        """As `Store.commit`; in bounds already."""
        async with self._slots.one() as slot:
            mark = slot.mark()
            while True:
                question = self._question(slot, mark, ops, expect)
                attempt_s = LONG_ATTEMPT_S if question.ByteSize() > BIG_BYTES else ATTEMPT_S
                answer, asked_before = await self._line.ask(TXN, question, attempt_s)
                if answer.succeeded:
                    return self._done(slot, ops, answer)
                seen = _first(answer.responses[0].range.kvs)
                if seen.mod_revision == slot.known:
                    raise self._lost(expect, answer, asked_before)
                if seen.value == mark:
                    slot.known = seen.mod_revision
                    return self._count.ours(seen.mod_revision)
                if not seen.mod_revision and asked_before:
                    raise StoreUnavailable("the slot of a commit was taken away while its outcome was unknown")
                slot.known = seen.mod_revision  # an older commit of this slot arrived late, or it was cleared away

    def _question(self, slot: Slot, mark: bytes, ops: Sequence[Put | Delete], expect: Sequence[Expect]) -> TxnRequest:
        question = TxnRequest(compare=[_at(slot.key, slot.known)])
        question.failure.add(range=RangeRequest(key=slot.key))
        for one in expect:
            key = self._key(one.key)
            question.compare.append(_at(key, self._count.expected(one.modified)))
            question.failure.add(range=RangeRequest(key=key, keys_only=True))
        put_mark = Op(put=PutRequest(key=slot.key, value=mark))
        if any(isinstance(op, Put) for op in ops):
            question.success.append(put_mark)
        else:
            question.success.append(self._only_if_one_is_there(ops, put_mark))
        question.success.extend(self._op(op) for op in ops)
        question.success.add(range=self._layout.newest_slot())
        return question

    def _only_if_one_is_there(self, ops: Sequence[Put | Delete], put_mark: Op) -> Op:
        """What deletes absent keys only changes nothing, and so makes no revision."""
        return Op(txn=TxnRequest(compare=[_at(self._key(op.key), 0) for op in ops], failure=[put_mark]))

    def _op(self, op: Put | Delete) -> Op:
        key = self._key(op.key)
        return Op(put=PutRequest(key=key, value=op.value)) if isinstance(op, Put) else Op(delete=DeleteRequest(key=key))

    def _key(self, key: str) -> bytes:
        return self._layout.record(bounds.bytes_of(key))

    def _done(self, slot: Slot, ops: Sequence[Put | Delete], answer: TxnResponse) -> int:
        changed = any(isinstance(op, Put) for op in ops) or not answer.responses[0].txn.succeeded
        if changed:
            slot.known = answer.header.revision
        return self._count.newest(answer.responses[-1].range)

    def _lost(
        self, expect: Sequence[Expect], answer: TxnResponse, asked_before: bool
    ) -> CompareFailed | StoreUnavailable:
        """Which expectation did not hold; whether it is sure that nothing was applied, and will not be."""
        for_good = True
        words = "a comparison was lost"
        for one, found in zip(expect, answer.responses[1:], strict=True):
            seen = _first(found.range.kvs).mod_revision
            if seen != self._count.expected(one.modified):
                at = f"at revision {self._count.ours(seen)}" if seen else "absent"
                words = f"{one.key} is {at}, not at {one.modified}"
                for_good = one.modified != 0  # no key goes back to a revision; one that is there may be deleted
                if for_good:
                    break
        if asked_before and not for_good:
            return StoreUnavailable(f"{words}; whether a first attempt comes through later is unknown")
        return CompareFailed(words)


def _at(key: bytes, revision: int) -> Compare:
    return Compare(key=key, target=Compare.MOD, mod_revision=revision)


def _first(found: Sequence[KeyValue]) -> KeyValue:
    """The one found; all zero when none was."""
    return found[0] if found else KeyValue()
