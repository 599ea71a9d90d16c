"""Refusals that travelled: problem details back into the error tree, and what did not come from NovaCron at all."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.errors import (
    BY_CODE,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NotFound,
    NovaCronError,
    PreconditionFailed,
    Reason,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

_BY_STATUS: Mapping[int, type[NovaCronError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    422: InvalidInput,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


class _Problem(msgspec.Struct, frozen=True):
    """The part of a problem that is read; what else it holds is ignored."""

    code: str
    detail: str = ""
    title: str = ""
    reasons: list[Reason] = []


def problem_of(status: int, body: bytes) -> NovaCronError:
    """The error that `body` describes. A code this program does not know keeps its words; the status says its class."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A proxy or another program: its page is no use to anyone, its status is.
        return _BY_STATUS.get(status, NovaCronError)(
            f"the answer was HTTP {status} without a reason",
            [_LOOK_AT_ADDRESS] if status not in (401, 403) else [],
        )
    kind = BY_CODE.get(problem.code) or _BY_STATUS.get(status, NovaCronError)
    return kind(problem.detail or problem.title or f"HTTP {status}", problem.reasons)


def not_ours(what: str) -> Unavailable:
    """Something answered, but not as NovaCron does."""
    return Unavailable(f"what answers there is not a NovaCron server: {what}", [_LOOK_AT_ADDRESS])


def unreachable(address: str, what: str) -> Unavailable:
    """No connection; says what to look at."""
    return Unavailable(
        f"cannot reach the server at {address}: {what}",
        [
            Reason(
                "server.unreachable",
                what,
                subject=address,
                remedy="see that it runs (`novacron server run`) and that --server or NOVACRON_SERVER names it",
            )
        ],
    )


def untrusted(address: str, what: str) -> Unavailable:
    """The server's certificate is not one we trust."""
    return Unavailable(
        f"cannot trust the server at {address}: {what}",
        [
            Reason(
                "server.untrusted",
                what,
                subject=address,
                remedy="give the cluster's CA with --ca-file",
            )
        ],
    )


def broken(address: str, what: str) -> Unavailable:
    """The connection ended before the answer came: the outcome is unknown."""
    return Unavailable(
        f"the connection to {address} ended before an answer came: {what}",
        [
            Reason(
                "server.line_broken",
                "the outcome is unknown",
                subject=address,
                remedy="look at the object before asking again",
            )
        ],
    )


def late(address: str, waited_s: float) -> DeadlineExceeded:
    """No answer in time."""
    return DeadlineExceeded(
        f"{address} gave no answer in {waited_s:g} s: the outcome is unknown",
        [Reason("server.late", "no answer in time", subject=address, remedy="look at the object before asking again")],
    )


_LOOK_AT_ADDRESS = Reason(
    "server.not_novacron",
    "the answer is not one of NovaCron's",
    remedy="see that --server or NOVACRON_SERVER names a NovaCron server and not a proxy or another program",
)
