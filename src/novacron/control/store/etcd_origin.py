"""What is done once when a store in etcd is opened: its origin is made or checked, and etcd's limits with it."""

from __future__ import annotations

from typing import Literal

import msgspec

from novacron.control.store.base import MAX_OPS
from novacron.control.store.etcd_layout import Count, Layout, Origin, read_origin
from novacron.control.store.etcd_line import LONG_ATTEMPT_S, RANGE, TXN, Line, foreign_cluster
from novacron.control.store.etcd_words_pb2 import (
    Compare,
    DeleteRequest,
    KeyValue,
    PutRequest,
    RangeRequest,
    TxnRequest,
)
from novacron.errors import Conflict, NotFound, Reason, StoreUnavailable

PROOF_BYTES = 3 << 20  # by itself etcd takes 2 MiB; all of MAX_COMMIT_BYTES would take a start up to a second
KEPT_SLOTS = 256  # of processes that ended, too


Way = Literal["serve", "read", "fill"]
"""serve: made when it is missing; read: it must be there, also in an etcd that was restored; fill: made as a copy."""


async def enter(line: Line, layout: Layout, where: str, way: Way, floor: int) -> Count:
    """The store's count; see `EtcdStore.open` for what is raised."""
    if way == "fill":
        await _refuse_full(line, layout, where)
    found, cluster_id, made = await _find_or_make(line, layout, where, way, floor)
    if way == "fill" and not made:
        raise not_empty(where)
    origin = read_origin(found, where)
    if origin.cluster_id != cluster_id and way == "serve":
        raise foreign_cluster(f"the etcd that holds {where} is not the one in which this store was made")
    if origin.state == "filling" and way != "fill":
        words = f"the store {where} is an unfinished copy of another one"
        raise StoreUnavailable(
            words, [Reason("store.filling", words, remedy="run the migration or restoration again, to its end")]
        )
    line.cluster_id = cluster_id
    return Count(found.create_revision, origin.floor)


def not_empty(where: str) -> Conflict:
    """A copy goes only to where nothing is."""
    remedy = "give another prefix or file: what is there is not touched"
    return Conflict(
        f"there is something in {where} already",
        [Reason("store.not_empty", "it is not empty", subject=where, remedy=remedy)],
    )


async def finish(line: Line, layout: Layout) -> None:
    """The copy is whole: servers may open the store from now on."""
    found, _ = await line.ask(RANGE, RangeRequest(key=layout.origin))
    origin = msgspec.structs.replace(read_origin(found.kvs[0], ""), state="whole")
    question = TxnRequest()
    question.success.add(put=PutRequest(key=layout.origin, value=msgspec.json.encode(origin)))
    await line.ask(TXN, question)


async def clear(line: Line, layout: Layout) -> bool:
    """Delete a copy that was not finished; whether there was one. A store that is whole is left alone."""
    answer, _ = await line.ask(RANGE, RangeRequest(key=layout.origin))
    if not answer.kvs or read_origin(answer.kvs[0], "").state != "filling":
        return False
    low, high = layout.all
    question = TxnRequest(
        compare=[Compare(key=layout.origin, target=Compare.MOD, mod_revision=answer.kvs[0].mod_revision)]
    )
    question.success.add(delete=DeleteRequest(key=low, range_end=high))
    done, asked_before = await line.ask(TXN, question, LONG_ATTEMPT_S)
    return done.succeeded or asked_before


async def prove_limits(line: Line) -> None:
    """Read with as many operations as a commit may have, and more bytes than etcd takes by itself.

    :raise StoreUnavailable: etcd's flags do not allow it.
    """
    ops = MAX_OPS + 1
    filler = b"x" * (PROOF_BYTES // ops)
    question = TxnRequest()
    for number in range(ops):
        question.success.add(range=RangeRequest(key=b"/limits/%d/" % number + filler, keys_only=True))
    inner = TxnRequest(compare=[Compare(key=b"/limits/%d" % number, target=Compare.MOD) for number in range(MAX_OPS)])
    question.success.add(txn=inner)  # etcd allows an inner transaction what the outer one leaves
    await line.ask(TXN, question, LONG_ATTEMPT_S)


async def clear_slots(line: Line, layout: Layout) -> None:
    """Delete the slots of processes long gone; never the newest, which tells the store's last revision."""
    by_change = RangeRequest(
        key=layout.slots,
        range_end=layout.slots + b"\xff",
        order=RangeRequest.DESCEND,
        by=RangeRequest.MOD,
        keys_only=True,
    )
    answer, _ = await line.ask(RANGE, by_change)
    old = answer.kvs[KEPT_SLOTS:]
    if old:
        question = TxnRequest()
        for slot in old[:MAX_OPS]:
            question.success.add(delete=DeleteRequest(key=slot.key))
        await line.ask(TXN, question)


async def _refuse_full(line: Line, layout: Layout, where: str) -> None:
    """:raise Conflict: a whole store or anything else lies there. What is left of an unfinished copy is deleted."""
    await clear(line, layout)
    low, high = layout.all
    answer, _ = await line.ask(RANGE, RangeRequest(key=low, range_end=high, limit=1, keys_only=True))
    if answer.kvs:
        raise not_empty(where)


async def _find_or_make(line: Line, layout: Layout, where: str, way: Way, floor: int) -> tuple[KeyValue, int, bool]:
    """The origin as it lies there, the cluster's id, and whether it was made now."""
    answer, _ = await line.ask(RANGE, RangeRequest(key=layout.origin))
    if answer.kvs:
        return answer.kvs[0], answer.header.cluster_id, False
    if way == "read":
        raise NotFound(f"there is no store in {where}")
    origin = Origin(answer.header.cluster_id, floor, "filling" if way == "fill" else "whole")
    question = TxnRequest(compare=[Compare(key=layout.origin, target=Compare.MOD, mod_revision=0)])
    question.success.add(put=PutRequest(key=layout.origin, value=msgspec.json.encode(origin)))
    for branch in (question.success, question.failure):
        branch.add(range=RangeRequest(key=layout.origin))
    done, asked_before = await line.ask(TXN, question)
    return done.responses[-1].range.kvs[0], done.header.cluster_id, done.succeeded or asked_before
