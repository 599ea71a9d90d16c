"""Every error as RFC 9457 problem details: the error tree, bad requests, unknown paths, and what nobody foresaw."""

from __future__ import annotations

import http
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Match
from starlette.websockets import WebSocket

from novacron.errors import InvalidInput, Malformed, MethodNotAllowed, NotFound, NovaCronError, Reason, TooLarge
from novacron.model.identity import NAME_PATTERN, NAME_RULE

PROBLEM_JSON = "application/problem+json"
MAX_REASONS = 32
MAX_TEXT = 4096

_ANYWHERE = (400, 401, 403, 413, 422, 500, 503)
_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger(__name__)


def problem(error: NovaCronError, instance: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """The error as problem details. instance: the path that was asked."""
    data: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": _text(error.message),
    }
    if instance:
        data["instance"] = _text(instance)
    data["reasons"] = [
        {
            "code": one.code,
            "message": _text(one.message),
            "subject": _text(one.subject),
            "remedy": _text(one.remedy),
        }
        for one in error.reasons[:1000]
    ]
    return Response(_encode(data), error.status, headers, PROBLEM_JSON)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead of success, for its `responses=`; those any route may answer are added."""
    schema = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": schema}
        for status in sorted({*statuses, *_ANYWHERE})
    }


def handle_errors(app: FastAPI) -> None:
    """Have the application answer every error with problem details."""
    for kind in (NovaCronError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)


def unforeseen(error: BaseException, path: str) -> NovaCronError:
    """What is said of an error nobody foresaw: an incident number; the cause goes to the log alone."""
    incident = secrets.token_hex(6)
    _log.error("request failed", incident=incident, path=path, exc_info=error)
    return NovaCronError(
        f"the server failed on this request; its log tells why under incident {incident}",
        [Reason("internal.incident", "an unforeseen error", subject=incident, remedy="tell the operator the number")],
    )


async def _on_error(connection: Any, error: Exception) -> Any:
    """What Starlette calls, with a Request or a WebSocket, for every error that left an endpoint."""
    path = connection.url.path
    headers = {}
    if isinstance(error, NovaCronError):
        told = error
        if error.status in (500, 504):
            _log.error("request failed", path=path, code=error.code, message=error.message)
    elif isinstance(error, RequestValidationError):
        told = bad_request(error.errors())
    elif isinstance(error, HTTPException):
        told = _of_http(error, connection)
        if told.status == 405:
            headers["allow"] = ", ".join(_methods(connection))
    else:
        told = unforeseen(error, path)
    answer = problem(told, path, headers)
    if not isinstance(connection, WebSocket):
        return answer
    await connection.send_denial_response(answer)
    return None


def _of_http(error: HTTPException, connection: HTTPConnection) -> NovaCronError:
    if error.status_code == 404:
        return NotFound("no such path")
    if error.status_code == 405:
        remedy = f"use {' or '.join(_methods(connection))}"
        return MethodNotAllowed(
            f"this path does not know the method {connection.scope['method']}",
            [Reason("method.unknown", "the path is right, the method is not", remedy=remedy)],
        )
    if error.status_code == 413:
        return TooLarge("the body is too large")
    if 400 <= error.status_code < 500:
        return Malformed(f"the request cannot be read: {error.detail}")
    return unforeseen(error, connection.url.path)


def _methods(connection: HTTPConnection) -> list[str]:
    """Every method that some route takes on this path."""
    methods: set[str] = set()
    for route in connection.app.routes:
        match, _ = route.matches(dict(connection.scope))
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


# -- requests that do not fit their schema -----------------------------------------------------------------


def bad_request(faults: Sequence[Mapping[str, Any]]) -> NovaCronError:
    """The validator's faults as one error; each reason names its field by a dotted path."""
    if any(fault["type"] == "json_invalid" for fault in faults):
        why = str(faults[0].get("ctx", {}).get("error", "")) or "it cannot be read"
        return Malformed(f"the body is not JSON: {why}", [Reason("body.malformed", why, remedy="send one JSON value")])
    reasons = [_fault(fault) for fault in faults[:MAX_REASONS]]
    told = "; ".join(f"{one.subject}: {one.message}" for one in reasons[:3])
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return InvalidInput(told + more, reasons)


def _fault(fault: Mapping[str, Any]) -> Reason:
    where = [str(part) for part in fault["loc"]]
    path = ".".join(where[1:]) or where[0]
    message, remedy = _words(fault)
    return Reason("field.invalid", message, subject=_text(path, 200), remedy=remedy)


_WORDS: dict[str, Callable[[Mapping[str, Any]], tuple[str, str]]] = {
    "missing": lambda _: ("is missing", "give it"),
    "extra_forbidden": lambda _: ("is not a known field", "leave it out, or correct its name"),
    "greater_than_equal": lambda c: (f"must be at least {c['ge']}", f"give a number from {c['ge']} up"),
    "less_than_equal": lambda c: (f"must be at most {c['le']}", f"give a number up to {c['le']}"),
    "multiple_of": lambda c: (f"must be a multiple of {c['multiple_of']}", f"round it to {c['multiple_of']}"),
    "string_too_short": lambda c: (f"has fewer than {c['min_length']} characters", "make it longer"),
    "string_too_long": lambda c: (f"has more than {c['max_length']} characters", "make it shorter"),
    "too_long": lambda c: (f"has more than {c['max_length']} items", f"give at most {c['max_length']}"),
    "enum": lambda c: ("is not a known value", f"give one of {c['expected']}"),
    "literal_error": lambda c: ("is not a known value", f"give one of {c['expected']}"),
    "value_error": lambda c: (str(c["error"]), ""),
    "string_pattern_mismatch": lambda c: (
        ("is not a legal name", NAME_RULE)
        if c["pattern"] == NAME_PATTERN
        else ("has a form that is not allowed", f"it must match {c['pattern']}")
    ),
}


def _words(fault: Mapping[str, Any]) -> tuple[str, str]:
    words = _WORDS.get(fault["type"])
    if words is not None:
        return words(fault.get("ctx", {}))
    message = str(fault["msg"]).removeprefix("Input ")
    return message[:1].lower() + message[1:], ""


def _text(text: str, limit: int = MAX_TEXT) -> str:
    """Bounded text that can be encoded, whatever the caller put into it."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return cut.encode("utf-8", "replace").decode()
