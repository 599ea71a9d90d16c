"""How the API answers: problems for errors, records with an ETag, pages with a cursor.

Every noun's `routes` uses these words, so that all of them answer alike:

    router = noun("images")                                       an APIRouter under /api/v1
    @router.get("/images/{image}", responses=problems(404), response_model=wire.Image, ...)
    return record(request, body, revision)                        bytes encoded once by the noun's view
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query
from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from novacron.control.problems import MAX_REASONS, problems
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import InvalidInput, PreconditionFailed, Reason, StoreUnavailable
from novacron.model.identity import LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, is_id

__all__ = [
    "PREFIX",
    "IfMatch",
    "Listed",
    "Listing",
    "check_match",
    "cursor_after",
    "etag",
    "noun",
    "page",
    "problems",
    "reads",
    "record",
    "selector_term",
]

PREFIX = "/api/v1"
JSON = "application/json"
MAX_PAGE = 500
DEFAULT_PAGE = 100
CAUGHT_UP_WITHIN_S = 10.0


def noun(tag: str) -> APIRouter:
    """An empty router for one noun: under /api/v1, its routes grouped as `tag` in the document."""
    return APIRouter(prefix=PREFIX, tags=[tag], dependencies=[Depends(_known_query), Depends(_caught_up)])


async def _known_query(request: Request) -> None:
    """Refuse query parameters the route does not take: a typing error must not look like success.

    :raise InvalidInput: names each of them.
    """
    if not request.scope["query_string"]:
        return
    known = set(_query_names(request.scope["route"].dependant))
    strays = sorted(set(request.query_params) - known)[:MAX_REASONS]
    if strays:
        remedy = f"this path takes {', '.join(sorted(known)) or 'none'}"
        reasons = [Reason("field.invalid", "is not a known parameter", name[:200], remedy) for name in strays]
        raise InvalidInput(f"{strays[0][:200]}: is not a known parameter", reasons)


async def _caught_up(
    request: Request,
    consistent: Annotated[
        bool,
        Query(description="Answer from no older a state than the question: all that any server acknowledged before."),
    ] = False,
) -> None:
    """Before a request that asks for it is answered, have the cache hold what the store held when it came.

    :raise StoreUnavailable: it cannot be known in time.
    """
    if not consistent:
        return
    records: Records = request.app.state.records
    try:
        async with asyncio.timeout(CAUGHT_UP_WITHIN_S):
            await records.refresh()
    except TimeoutError as late:
        remedy = "ask again, or without consistent=true: the answer may then be older"
        reason = Reason("store.slow", f"not caught up within {CAUGHT_UP_WITHIN_S:g} s", remedy=remedy)
        raise StoreUnavailable("this server does not know the newest state", [reason]) from late


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


# -- records and their revisions ---------------------------------------------------------------------------


def etag(revision: int) -> str:
    """The ETag of a record: the store revision that last changed it."""
    return f'"{revision}"'


def reads(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`problems` of a route that reads one record with an ETag."""
    return problems(*statuses) | {304: {"description": "Not modified since the revision in If-None-Match"}}


def record(
    request: HTTPConnection | None,
    body: bytes,
    revision: int,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    """One record, already encoded, with its ETag; 304 without a body when the asker holds this revision already.

    request: None for records whose view changes without their revision; those are always sent whole.
    """
    tag = etag(revision)
    if request is not None and status == 200 and request.scope["method"] == "GET":
        held = request.headers.get("if-none-match")
        if held is not None and (held.strip() == "*" or tag in _tags(held)):
            return Response(status_code=304, headers={"etag": tag})
    return Response(body, status, {"etag": tag, **(headers or {})}, JSON)


def _tags(header: str) -> frozenset[str]:
    return frozenset(one.strip().removeprefix("W/") for one in header.split(","))


# Dependencies are coroutines also where they wait for nothing: FastAPI calls plain functions in threads, and each such
# hop waits for a busy loop to give way.
async def if_match(
    if_match: Annotated[
        str | None,
        Header(
            description='Go on only if the record still has one of these ETags, as `"17"`; `*`: any.', max_length=1024
        ),
    ] = None,
) -> frozenset[str] | None:
    """The ETags the caller holds; None when the header is absent or `*`."""
    if if_match is None or if_match.strip() == "*":
        return None
    return _tags(if_match)


IfMatch = Annotated[frozenset[str] | None, Depends(if_match)]


def check_match(held: frozenset[str] | None, stored: Stored[Any]) -> None:
    """:raise PreconditionFailed: the caller holds an older revision of this record."""
    if held is not None and etag(stored.modified) not in held:
        raise PreconditionFailed(
            f"the record has changed: it is at revision {stored.modified} now",
            [Reason("revision.stale", "If-Match names another revision", remedy="read it again, then decide again")],
        )


# -- pages -------------------------------------------------------------------------------------------------


class Term(msgspec.Struct, frozen=True):
    """One term of a label selector. value None: the key must be there, whatever its value."""

    key: str
    value: str | None = None
    negated: bool = False

    def holds(self, labels: dict[str, str]) -> bool:
        found = self.key in labels if self.value is None else labels.get(self.key) == self.value
        return found is not self.negated


class Listing(msgspec.Struct, frozen=True):
    """Which part of a list is asked for: at most `limit` records with ids after `after` whose labels fit."""

    after: str
    limit: int
    terms: tuple[Term, ...] = ()

    def fits(self, labels: dict[str, str]) -> bool:
        for term in self.terms:  # noqa: SIM110 (asked of every record there is: a plain loop takes half the time)
            if not term.holds(labels):
                return False
        return True

    @property
    def exact(self) -> tuple[tuple[str, str], ...]:
        """The labels that must be there with a certain value: key and value."""
        return tuple((one.key, one.value) for one in self.terms if one.value is not None and not one.negated)


async def listing(
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", pattern="^[A-Za-z0-9_-]{48,52}$")
    ] = None,
    limit: Annotated[int, Query(description="Records in a page.", ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    label: Annotated[
        list[Annotated[str, Query(max_length=130)]],
        Query(
            description="Only records with this label: `key=value`, `key!=value` or `key`. Repeat it to ask for more.",
            max_length=16,
        ),
    ] = [],  # noqa: B006 (FastAPI copies it)
) -> Listing:
    """The query parameters that every list takes."""
    return Listing(
        after=_read_cursor(cursor) if cursor else "", limit=limit, terms=tuple(selector_term(one) for one in label)
    )


Listed = Annotated[Listing, Depends(listing)]


def page(items: Sequence[bytes], last_id: str | None) -> Response:
    """Records already encoded as one page; `last_id`: the last one's id when more follow, else None."""
    following = b'"' + cursor_after(last_id).encode() + b'"' if last_id else b"null"
    return Response(b'{"items":[' + b",".join(items) + b'],"next_cursor":' + following + b"}", media_type=JSON)


def cursor_after(record_id: str) -> str:
    """Where the next page begins. Opaque to callers, so that it may change."""
    return base64.urlsafe_b64encode(b"1" + record_id.encode()).decode().rstrip("=")


def _read_cursor(text: str) -> str:
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        plain = ""
    if not plain.startswith("1") or not is_id(plain[1:]):
        raise InvalidInput.field("cursor", "is not a cursor of this API", "give next_cursor of the page before")
    return plain[1:]


_TERM = re.compile(
    f"(?P<key>{LABEL_KEY_PATTERN[1:-1]})(?:(?P<op>!?=)(?P<value>{LABEL_VALUE_PATTERN[1:-1]}))?", re.ASCII
)


def selector_term(text: str) -> Term:
    """`key=value`, `key!=value` or `key` as data. :raise InvalidInput"""
    match = _TERM.fullmatch(text)
    if match is None:
        raise InvalidInput.field("label", "is not a label selector", "give key=value, key!=value or key")
    return Term(match["key"], match["value"], negated=match["op"] == "!=")
