"""The line to an etcd cluster: one channel a member, one of them in use, the next one when it does not answer.

A member that is silent is found out by a deadline of one attempt (docs/decisions/0017): what was asked is asked
again, so only what may be asked twice goes over this line. Streams break off when their member is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import Message

from novacron.clock import Clock
from novacron.control.store import etcd_errors
from novacron.control.store.etcd_words_pb2 import (
    CompactRequest,
    CompactResponse,
    Header,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
    WatchRequest,
    WatchResponse,
)
from novacron.errors import Reason, StoreUnavailable

ATTEMPT_S = 1.0  # a leader that dies stalls what it was asked for 7 s; asking another costs one of these
LONG_ATTEMPT_S = 5.0  # for answers of megabytes
PATIENCE_S = 10.0
PAUSE_S = 0.1
MAX_ANSWER_BYTES = 64 << 20

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_WITH_A_LEADER = (("hasleader", "true"),)  # a member without one ends the stream instead of staying silent

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", RangeResponse, TxnResponse, CompactResponse)
Watching = grpc.aio.UnaryStreamCall[WatchRequest, WatchResponse]


class Verb(Generic[Q, A]):
    """What can be asked, and what comes back."""

    def __init__(self, path: str, question: type[Q], answer: type[A]) -> None:
        self.path = path
        self.question: type[Q] = question
        self.answer: type[A] = answer


RANGE = Verb("/etcdserverpb.KV/Range", RangeRequest, RangeResponse)
TXN = Verb("/etcdserverpb.KV/Txn", TxnRequest, TxnResponse)
COMPACT = Verb("/etcdserverpb.KV/Compact", CompactRequest, CompactResponse)
_WATCH = "/etcdserverpb.Watch/Watch"


class Credentials(msgspec.Struct, frozen=True):
    """Contents of PEM files; `key` and `cert` are None where etcd asks for no client certificate."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None


class _Member:
    """One endpoint and the calls that run at it."""

    def __init__(self, endpoint: str, credentials: Credentials | None) -> None:
        self.endpoint = endpoint
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(endpoint, _OPTIONS)
        else:
            secret = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.cert)
            self.channel = grpc.aio.secure_channel(endpoint, secret, _OPTIONS)
        self.streams: set[Watching] = set()

    async def ask(self, verb: Verb[Q, A], question: Q, deadline_s: float) -> A:
        """:raise AioRpcError"""
        call = self.channel.unary_unary(
            verb.path, request_serializer=verb.question.SerializeToString, response_deserializer=verb.answer.FromString
        )
        answer: A = await call(question, timeout=deadline_s)
        return answer

    def end_streams(self) -> None:
        for stream in tuple(self.streams):
            stream.cancel()


class Line:
    """Ask any member; `ask` may ask twice. cluster_id: once it is set, a member of another cluster is not believed.

    Nor is one that answers from before what was known when it was asked: all reads here are linearizable, so the disks
    of its cluster were put back, and what such a store says may never be acted on (docs/store.md).
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None, clock: Clock) -> None:
        self._members = [_Member(endpoint, credentials) for endpoint in endpoints]
        self._clock = clock
        self._place = 0
        self._reached = 0  # the newest revision any member has told
        self.cluster_id = 0

    async def ask(self, verb: Verb[Q, A], question: Q, attempt_s: float = ATTEMPT_S) -> tuple[A, bool]:
        """The answer, and whether it was asked before without one: the question may have been carried out twice.

        :raise StoreUnavailable: no member answered in PATIENCE_S, or etcd cannot do it now; what was asked may
            still happen. :raise Compacted: :raise StoreCorrupt: as etcd says.
        """
        until_s = self._clock.monotonic_s() + PATIENCE_S
        asked_before = False
        while True:
            member, reached = self._members[self._place], self._reached
            strange: StoreUnavailable | None = None
            words = ""
            left_s = until_s - self._clock.monotonic_s()
            try:
                answer = await member.ask(verb, question, min(attempt_s, left_s))
            except grpc.aio.AioRpcError as wrong:
                if refusal := etcd_errors.meaning(wrong, member.endpoint):
                    raise refusal from wrong
                words = f"{member.endpoint}: {wrong.details() or wrong.code().name}"
            else:
                strange = self._strange(member.endpoint, answer.header, reached)
                if strange is None:
                    self._reached = max(self._reached, answer.header.revision)
                    return answer, asked_before
            asked_before = True
            self._leave(member)
            if until_s - self._clock.monotonic_s() <= PAUSE_S:
                raise strange or etcd_errors.unreachable(self.endpoints, words)
            await self._clock.sleep(PAUSE_S)

    @contextlib.asynccontextmanager
    async def watching(self, question: WatchRequest) -> AsyncIterator[Watching]:
        """A watch stream at the member in use, which ends when the member is left. :raise AioRpcError"""
        member = self._members[self._place]
        # etcd goes on after the last question; a stream that asks more hangs when it is left while it begins
        open_stream = member.channel.unary_stream(
            _WATCH, request_serializer=_watch_bytes, response_deserializer=WatchResponse.FromString
        )
        stream: Watching = open_stream(question, metadata=_WITH_A_LEADER)
        member.streams.add(stream)
        try:
            yield stream
        except grpc.aio.AioRpcError as wrong:
            if refusal := etcd_errors.meaning(wrong, member.endpoint):
                raise refusal from wrong
            self._leave(member)
            raise
        finally:
            member.streams.discard(stream)
            stream.cancel()

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in self._members)

    async def pause(self) -> None:
        """Before the next try."""
        await self._clock.sleep(PAUSE_S)

    def shun(self, stream: Watching) -> None:
        """Leave the member of that stream: it answers, but not as it should."""
        for member in self._members:
            if stream in member.streams:
                self._leave(member)

    def end_streams(self) -> None:
        """Watches read no further."""
        for member in self._members:
            member.end_streams()

    async def close(self) -> None:
        """Let go of the connections; nobody may be asking any more."""
        self.end_streams()
        for member in self._members:
            await member.channel.close()

    def _strange(self, endpoint: str, header: Header, reached: int) -> StoreUnavailable | None:
        """Why what it says is not believed. reached: what was known before it was asked."""
        if self.cluster_id not in (0, header.cluster_id):
            seen, known = f"{header.cluster_id:x}", f"{self.cluster_id:x}"
            words = (
                f"{endpoint} is of another etcd cluster ({seen}) than the store ({known}): a wrong or a restored one"
            )
            return foreign_cluster(words)
        if header.revision < reached:
            return _put_back(
                f"{endpoint} is at revision {header.revision}, and was at {reached}: its disks were put back"
            )
        return None

    def _leave(self, member: _Member) -> None:
        """Use the next one, unless somebody has left this one already."""
        if member is self._members[self._place]:
            self._place = (self._place + 1) % len(self._members)
            member.end_streams()


def foreign_cluster(message: str) -> StoreUnavailable:
    """The etcd that answers is not the one this store was made in."""
    remedy = (
        "if it was restored from an etcd snapshot: `novacron store backup` it, and `novacron store restore` that under"
        " another prefix (docs/store.md); else give the right endpoints"
    )
    return StoreUnavailable(message, [Reason("store.restored", message, remedy=remedy)])


def _put_back(message: str) -> StoreUnavailable:
    """The etcd that answers is older than it was."""
    remedy = "give etcd the newest disks of its members; if there are none, see docs/store.md, A store of the past"
    return StoreUnavailable(message, [Reason("store.restored", message, remedy=remedy)])


def _watch_bytes(question: WatchRequest) -> bytes:
    return question.SerializeToString()
