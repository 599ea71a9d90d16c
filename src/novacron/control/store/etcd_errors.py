"""What etcd's refusals mean to a store: trouble that another try may cure, or an error of ours with what to type."""

from __future__ import annotations

import grpc

from novacron.errors import Compacted, NovaCronError, Reason, StoreCorrupt, StoreUnavailable

FLAGS = "--max-txn-ops 4096 --max-request-bytes 10485760"
"""What etcd must be started with: its defaults are 128 operations and 1.5 MiB."""

_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,  # a connection that broke in the midst of an answer
    grpc.StatusCode.UNKNOWN,
}
_REMEDY_FULL = (
    "make room on every member: `etcdctl compaction REVISION`, `etcdctl defrag --cluster`, then `etcdctl alarm disarm`;"
    " or start the members with a larger --quota-backend-bytes"
)


class AnswerTooLarge(StoreUnavailable):
    """The answer is larger than we take at once: ask for less."""


def meaning(wrong: grpc.aio.AioRpcError, endpoint: str) -> NovaCronError | None:
    """The error it is; None: another try, at another member, may succeed."""
    code, words = wrong.code(), wrong.details() or ""
    if "too many requests" in words or "member not found" in words:
        return None
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in words:
        return Compacted("changes after that revision are no longer kept: list again")
    if "database space exceeded" in words:
        return _unavailable("store.full", f"etcd at {endpoint} has no room left ({words})", endpoint, _REMEDY_FULL)
    if code is grpc.StatusCode.DATA_LOSS or "corrupt" in words:
        return StoreCorrupt(
            f"etcd at {endpoint} says that its members differ ({words})",
            [Reason("store.corrupt", words, subject=endpoint, remedy="restore the etcd cluster, see docs/store.md")],
        )
    if "CLIENT:" in words and "larger than max" in words:
        return AnswerTooLarge(f"etcd at {endpoint} answers more than is taken at once")
    if "too many operations" in words or "too large" in words or "larger than max" in words:
        return _unavailable(
            "store.limits",
            f"etcd at {endpoint} takes smaller transactions only ({words})",
            endpoint,
            f"start every etcd member with {FLAGS}",
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        remedy = "give the cert and key of a user of etcd that may read and write the prefix"
        return _unavailable("store.forbidden", f"etcd at {endpoint} refuses us ({words})", endpoint, remedy)
    if code in _PASSING:
        return None
    return StoreUnavailable(f"etcd at {endpoint} cannot do what was asked: {words}")


def unreachable(endpoints: str, words: str) -> StoreUnavailable:
    """No member did it in time; what was asked may still happen."""
    remedy = "see that a majority of the etcd members runs and can be reached from here, with these certificates"
    return _unavailable("store.unreachable", f"no etcd member did it in time ({words})", endpoints, remedy)


def _unavailable(code: str, message: str, subject: str, remedy: str) -> StoreUnavailable:
    return StoreUnavailable(message, [Reason(code, message, subject=subject, remedy=remedy)])
