"""Who is at the other end of a connection, and a short way to it: what uvicorn knows and leaves out of its scopes."""

from __future__ import annotations

from asyncio import BaseTransport
from collections.abc import MutableMapping, Sequence
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION = "novacron.peer"
FRAMES = "novacron.frames"


def note(scope: MutableMapping[str, Any], transport: BaseTransport) -> None:
    """Keep in the scope of a request who sent it; nothing without TLS."""
    secure = transport.get_extra_info("ssl_object")
    if secure is not None:
        scope.setdefault("extensions", {})[EXTENSION] = secure.getpeercert(binary_form=True) or b""


def is_tls(scope: MutableMapping[str, Any]) -> bool:
    return EXTENSION in scope.get("extensions", {})


def certificate_of(scope: MutableMapping[str, Any]) -> bytes:
    """The certificate shown, as DER; empty: none. Its signature was checked against the CA the listener trusts."""
    shown: bytes = scope.get("extensions", {}).get(EXTENSION, b"")
    return shown


TEXT, BINARY = b"\x81", b"\x82"
"""How a frame begins that is a whole message."""


def framed(content: bytes, kind: bytes = TEXT) -> bytes:
    """UTF-8, or bytes, as one frame of a server: not masked, so the same bytes for everybody."""
    size = len(content)
    if size < 126:
        return kind + bytes((size,)) + content
    if size < 1 << 16:
        return kind + b"\x7e" + size.to_bytes(2, "big") + content
    return kind + b"\x7f" + size.to_bytes(8, "big") + content


def text_of(frame: bytes) -> str:
    """What was framed."""
    return frame[{0x7E: 4, 0x7F: 10}.get(frame[1], 2) :].decode()


async def send_frames(websocket: WebSocket, frames: Sequence[bytes], joined: bytes) -> None:
    """Send what `framed` made, and the same in one; past the server's own framing where it has a way for that.

    A slow reader is waited for.

    :raise WebSocketDisconnect: it has gone.
    """
    outlet = outlet_of(websocket)
    if outlet is None:
        for frame in frames:
            await websocket.send_text(text_of(frame))
        return
    await _pass(outlet, joined)


def outlet_of(websocket: WebSocket) -> WebSockets | None:
    """The way past the server's own framing; None behind a web server that has none."""
    ours: WebSockets | None = websocket.scope.get("extensions", {}).get(FRAMES)
    return ours


async def send_bytes(websocket: WebSocket, content: bytes) -> None:
    """As `websocket.send_bytes`, past the framework's and the server's own framing: a thousand nodes hear much.

    :raise WebSocketDisconnect: it has gone.
    """
    outlet = outlet_of(websocket)
    if outlet is None:
        await websocket.send_bytes(content)
    else:
        await _pass(outlet, framed(content, BINARY))


async def _pass(outlet: WebSockets, frames: bytes) -> None:
    """All of it, as soon as it is taken: of several who wait the first may fill the connection again."""
    while not outlet.take(frames):
        await outlet.drained()


def drop(websocket: WebSocket) -> None:
    """End the connection at once: what was to be sent is thrown away. Without a way for that: left to the server."""
    outlet = outlet_of(websocket)
    if outlet is not None:
        outlet.transport.abort()


class WebSockets(WebSocketsSansIOProtocol):
    """uvicorn's side of a WebSocket, whose scope says who is at the other end, and takes frames as they are.

    No extension may be on that changes frames: `listen` has compression off.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was no good, and there is no scope
            note(self.scope, self.transport)  # type: ignore[arg-type]
            self.scope.setdefault("extensions", {})[FRAMES] = self  # type: ignore[assignment]

    def take(self, frames: bytes) -> bool:
        """Whole frames, as they are to go out. False: nothing was taken, it is full or gone."""
        if self._gone or not self.writable.is_set():
            return False
        self.transport.write(frames)
        return True

    async def drained(self) -> None:
        """Wait until it takes frames. :raise WebSocketDisconnect: the other end has gone."""
        await self.writable.wait()
        if self._gone:
            raise WebSocketDisconnect(1006)

    @property
    def _gone(self) -> bool:
        return self.disconnected or self.close_sent or self.transport.is_closing()
