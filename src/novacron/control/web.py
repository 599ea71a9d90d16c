"""The web application: routers mounted, every request bounded, guarded, counted, and answered with safe headers."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import novacron
from novacron.clock import Clock
from novacron.control import stream
from novacron.control.access.guard import Guard, needs
from novacron.control.access.service import Access
from novacron.control.answers import PREFIX
from novacron.control.document import document
from novacron.control.observe import Figures, Observed
from novacron.control.page import CONTENT_SECURITY_POLICY, render
from novacron.control.problems import handle_errors, problem, problems
from novacron.control.store.records import Records
from novacron.errors import Reason, StoreUnavailable, TooLarge
from novacron.wire import agent as agent_wire
from novacron.wire import joining as joining_wire
from novacron.wire import storage as storage_wire

MAX_BODY_BYTES = 1 << 20
UPLOAD = re.compile(re.escape(PREFIX) + r"/images/[^/]+/(?:files/[^/]+|uploads/[^/]+)\Z")
"""Where more may be sent: image files, which their room bounds itself."""

READY_WITHIN_S = 2.0
OPENAPI = "/api/openapi.json"
DOCS = "/api/docs"
OPEN = ("/healthz", "/readyz", agent_wire.PATH, storage_wire.IMAGES_PATH, joining_wire.ROOM)
BROWSABLE = (OPENAPI, DOCS, "/metrics")

_encode = msgspec.json.Encoder().encode


class Door(Protocol):
    """Where agents come in."""

    async def serve(self, websocket: WebSocket) -> None:
        """One agent's line, from its handshake to its end. It checks the agent's secret itself."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the application is built from. routers: one a noun."""

    records: Records
    clock: Clock
    access: Access
    events: stream.Stream
    door: Door
    figures: Figures
    routers: Sequence[APIRouter]
    tls: bool = False


def build(parts: Parts) -> FastAPI:
    """The application. It holds no state of its own and starts nothing."""
    app = FastAPI(
        title="NovaCron",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.records = parts.records
    app.state.clock = parts.clock
    app.state.events = parts.events
    handle_errors(app)
    for router in (*parts.routers, _server(parts), _lines(parts)):
        app.router.routes.extend(router.routes)  # flat: included routers are matched twice for each request
    app.router.routes.extend(_reading(app).routes)
    app.add_middleware(BodyBound)
    app.add_middleware(Guard, access=parts.access, open_paths=OPEN, browsable=BROWSABLE)
    app.add_middleware(SafeHeaders, tls=parts.tls)
    app.add_middleware(Observed, figures=parts.figures)
    return app


def _server(parts: Parts) -> APIRouter:
    """Health and figures."""
    routes = APIRouter(tags=["server"])

    @routes.get("/healthz", response_model=dict[str, bool])
    async def healthz() -> Response:
        """Whether the process answers. Needs no token."""
        return _json({"ok": True})

    @routes.get("/readyz", responses=problems(503), response_model=dict[str, bool])
    async def readyz() -> Response:
        """Whether it can do its work: the store answers and the record cache follows it. Needs no token."""
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await parts.records.refresh()
        except TimeoutError as late:
            raise StoreUnavailable(
                "not ready: the store does not answer",
                [Reason("store.slow", f"no answer within {READY_WITHIN_S:g} s", remedy="look at the disk's load")],
            ) from late
        if not parts.records.following:
            raise StoreUnavailable("not ready: the record cache has lost the store")
        return _json({"ready": True})

    @routes.get(
        "/metrics",
        dependencies=[needs("metrics.read")],
        responses=problems() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        response_model=None,
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(parts.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def _lines(parts: Parts) -> APIRouter:
    """The two WebSockets."""
    routes = APIRouter()

    @routes.websocket(PREFIX + stream.PATH, dependencies=[needs("events.read")])
    async def events(websocket: WebSocket) -> None:
        await parts.events.serve(websocket)

    @routes.websocket(agent_wire.PATH)
    async def line(websocket: WebSocket) -> None:
        await parts.door.serve(websocket)

    return routes


def _reading(app: FastAPI) -> APIRouter:
    """The document and its page, made from all routes when first asked for, then kept."""
    routes = APIRouter()

    @functools.cache
    def made() -> tuple[bytes, bytes]:
        described = document(app, novacron.__version__)
        return _encode(described), render(described)

    @routes.get(OPENAPI, dependencies=[needs("docs.read")], include_in_schema=False)
    async def openapi() -> Response:
        return Response(made()[0], media_type="application/json")

    @routes.get(DOCS, dependencies=[needs("docs.read")], include_in_schema=False)
    async def docs() -> Response:
        return Response(made()[1], 200, {"content-security-policy": CONTENT_SECURITY_POLICY}, "text/html")

    return routes


def _json(data: dict[str, bool]) -> Response:
    return Response(_encode(data), media_type="application/json")


class BodyBound:
    """ASGI middleware: refuses bodies over the bound, whether announced or merely sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] in ("PUT", "PATCH") and UPLOAD.match(scope["path"])):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            reason = Reason("body.too_large", f"{announced} bytes announced", remedy="send less")
            refused = TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes", [reason])
            await problem(refused, scope["path"], {"connection": "close"})(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise HTTPException(413)  # the one kind of error that FastAPI lets through from here
            return message

        await self._app(scope, bounded, send)


class SafeHeaders:
    """ASGI middleware: headers that keep browsers from doing more with an answer than reading it."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self._app = app
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"private, no-cache"),
        ]
        if tls:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ())) + self._headers
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, with_headers)
