"""The doors at which nodes ask for certificates, in the words of wire.joining: open to all, each checks who asks."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from novacron.control.doorman import client_of
from novacron.control.joining.door import ByCertificate
from novacron.control.joining.service import JoinService
from novacron.control.peer import is_tls
from novacron.errors import Forbidden, InvalidInput, Malformed, Reason, TooLarge
from novacron.wire import joining as wire

Word = TypeVar("Word", bound=msgspec.Struct)
_encode = msgspec.json.Encoder().encode


def router(service: JoinService, door: ByCertificate) -> APIRouter:
    """The three paths. Only over TLS: what they give is secret, and what they take too."""
    routes = APIRouter()

    @routes.get(wire.CA_PATH, include_in_schema=False)
    async def ca(request: Request) -> Response:
        now_s = int(request.app.state.clock.wall().timestamp())
        return _json(wire.CaCertificates(ca_pem=service.signing.authority.ca_pem, now_s=now_s))

    @routes.post(wire.JOIN_PATH, include_in_schema=False)
    async def join(request: Request) -> Response:
        _only_tls(request)
        return _json(await service.join(await _asked(request, wire.Join), client_of(request)))

    @routes.post(wire.RENEW_PATH, include_in_schema=False)
    async def renew(request: Request) -> Response:
        _only_tls(request)
        shown = door.certificate(request)
        return _json(await service.renew(shown, await _asked(request, wire.Renew), client_of(request)))

    return routes


def _only_tls(request: Request) -> None:
    if not is_tls(request.scope):
        reason = Reason(
            "tls.needed", "certificates are given over TLS alone", remedy="use the server's https:// address"
        )
        raise Forbidden("this listener has no TLS", [reason])


async def _asked(request: Request, kind: type[Word]) -> Word:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > wire.MAX_ASK_BYTES:
            raise TooLarge(f"the body has more than {wire.MAX_ASK_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as wrong:
        raise InvalidInput.field("body", str(wrong), "send what wire.joining says") from wrong
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise Malformed("the body is not JSON") from wrong


def _json(data: msgspec.Struct) -> Response:
    return Response(_encode(data), media_type="application/json")
