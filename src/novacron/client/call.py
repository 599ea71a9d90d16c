"""One call as data: what is asked of the server and what it will answer; nothing is sent here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from novacron.client.problem import not_ours, problem_of
from novacron.model.identity import check_name, is_id

API = "/api/v1"
MAX_PAGE = 500

Query = Mapping[str, str | int | Sequence[str]]
"""Parameters of a call; empty ones are left out. `label` holds conditions: `key=value`, `key!=value` or `key`."""

T = TypeVar("T")
Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """One page of a list, in order of birth. next_cursor None: the end."""

    items: list[Item]
    next_cursor: str | None = None


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One call: `path` from the server's root, quoted; `body` a struct or None.

    answer: the type the answer is read into. revision: what If-Match asks for; None: whatever it is now.
    consistent: see the function of that name.
    """

    method: str
    path: str
    answer: type[T]
    query: Query = {}
    body: msgspec.Struct | None = None
    revision: int | None = None
    consistent: bool = False

    @property
    def is_keyed(self) -> bool:
        """Whether it carries an Idempotency-Key: the server does it once however often it arrives."""
        return self.method == "POST"

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it again after an unknown outcome is harmless."""
        return self.method == "GET" or self.is_keyed


def consistent(call: Call[T]) -> Call[T]:
    """The same call, answered from no older a state than the question, whichever server is asked: it first catches up
    with the store. `nova.do(consistent(vms.get("web-1")))`
    """
    return msgspec.structs.replace(call, consistent=True)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it goes out."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_of(call: Call[Any], key: str) -> Request:
    """The call as bytes. `key` is used when it is one that is keyed."""
    headers = {}
    body = b""
    if call.body is not None:
        headers["Content-Type"] = "application/json"
        body = msgspec.json.encode(call.body)
    if call.is_keyed:
        headers["Idempotency-Key"] = key
    if call.revision is not None:
        headers["If-Match"] = f'"{call.revision}"'
    asked: Query = {**call.query, "consistent": "true"} if call.consistent else call.query
    query = urlencode({name: value for name, value in asked.items() if value != ""}, doseq=True)
    return Request(
        method=call.method, target=f"{call.path}?{query}" if query else call.path, headers=headers, body=body
    )


def answer_of(call: Call[T], response: Response) -> T:
    """What the server answered, read.

    :raise NovaCronError: its refusal, rebuilt with its code; Unavailable when what answered is not NovaCron.
    """
    if not 200 <= response.status < 300:
        raise problem_of(response.status, response.body)
    return read_answer(call.answer, response.body)


def read_answer(kind: type[T], body: bytes) -> T:
    """`body` as a `kind`; nothing at all for `type(None)`.

    :raise Unavailable: it is not that, so whatever answered is not NovaCron.
    """
    if kind is type(None):
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise not_ours(f"its answer cannot be read: {wrong}") from wrong


def path_of(collection: str, ref: str = "", action: str = "") -> str:
    """`/api/v1/<collection>[/<ref>[/<action>]]`, where `ref` has been checked by `ref_of`."""
    return "/".join([API, collection, *(quote(part, safe="/") for part in (ref, action) if part)])


def ref_of(noun: str, text: str) -> str:
    """`text` if it may be an id or a name; so a path never leads elsewhere.

    :raise InvalidInput: it is neither.
    """
    return text if is_id(text) else check_name(text, noun)
