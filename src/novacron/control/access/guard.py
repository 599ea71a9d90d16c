"""The door: nothing answers without a token, and each route names the permission it needs beside its path.

    @router.get("/vms", dependencies=[needs("vms.read")])

`Guard` finds out who asks, before the body is read and whatever the path; `needs` asks whether they may.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from novacron.control.access.service import Access, Principal
from novacron.control.problems import problem
from novacron.errors import Forbidden, Reason, Unauthenticated

WEBSOCKET_TOKEN = "bearer."  # noqa: S105 (the prefix of the subprotocol that carries one)


class Needs:
    """A dependency that lets a request pass if who asks has the permission."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    async def __call__(self, connection: HTTPConnection) -> None:
        who: Principal = connection.scope["principal"]
        if not who.may(self.permission):
            raise Forbidden(
                f"this token may not do that: it lacks the permission {self.permission}",
                [Reason("permission.missing", "permission missing", subject=self.permission, remedy="ask an admin")],
            )


def needs(permission: str) -> Any:
    """Declare, in a route's `dependencies`, the permission that it needs."""
    return Depends(Needs(permission))


async def _caller(connection: HTTPConnection) -> Principal:
    who: Principal = connection.scope["principal"]
    return who


Caller = Annotated[Principal, Depends(_caller)]
"""Who asks, as a parameter of an endpoint."""


def permission_of(route: APIRoute | APIWebSocketRoute) -> str | None:
    """The permission a route declares, None when it declares none."""
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, Needs):
            return dependency.call.permission
    return None


def permissions(app: FastAPI) -> Iterator[tuple[str, str, str | None]]:
    """The table of the application's routes: method (or WEBSOCKET), path, permission."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods or ()):
                yield method, route.path, permission_of(route)
        elif isinstance(route, APIWebSocketRoute):
            yield "WEBSOCKET", route.path, permission_of(route)


class Guard:
    """ASGI middleware: finds the principal by bearer token, or answers 401.

    open_paths: answered without a token (health; the agents' doors, which have a secret of their own); one that ends
    with a slash opens all below it.
    browsable: paths where GET also takes HTTP Basic with the token as password, so that a browser can read them.
    """

    def __init__(self, app: ASGIApp, access: Access, open_paths: Collection[str], browsable: Collection[str]) -> None:
        self._app = app
        self._access = access
        self._open = frozenset(open_paths)
        self._open_rooms = tuple(path for path in open_paths if path.endswith("/"))
        self._browsable = frozenset(browsable)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._open or scope["path"].startswith(self._open_rooms):
            await self._app(scope, receive, send)
            return
        browsable = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in self._browsable
        token = _token(scope, basic=browsable)
        who = self._access.who(token) if token else None
        if who is not None:
            scope["principal"] = who
            await self._app(scope, receive, send)
            return
        refused = Unauthenticated(
            "this token is not known" if token else "a token is needed",
            [Reason("token.unknown" if token else "token.missing", "who asks is not known", remedy=_REMEDY)],
        )
        challenge = (
            'Basic realm="NovaCron: any name, the token as password"' if browsable else 'Bearer realm="NovaCron"'
        )
        answer = problem(refused, scope["path"], {"www-authenticate": challenge})
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)


_REMEDY = "send Authorization: Bearer <token>; the first token lies in admin.token in the server's data directory"


def _token(scope: Scope, *, basic: bool) -> str:
    """The token the request carries, empty when there is none."""
    headers = Headers(scope=scope)
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeError):
            return ""
    if scope["type"] == "websocket":
        for offered in scope.get("subprotocols", ()):
            if offered.startswith(WEBSOCKET_TOKEN):
                return str(offered.removeprefix(WEBSOCKET_TOKEN))
    return ""
