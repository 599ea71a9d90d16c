"""The certificate of who is at the other end, on its way from the TLS layer to whoever asks; uvicorn leaves it out."""

from __future__ import annotations

from asyncio import BaseTransport
from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION = "novacron.peer"


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


class WebSockets(WebSocketsSansIOProtocol):
    """uvicorn's side of a WebSocket, whose scope says who is at the other end."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was no good, and there is no scope
            note(self.scope, self.transport)  # type: ignore[arg-type]
