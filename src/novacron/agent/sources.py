"""Where image files come from: the server, by the address and secret of the line; another node's image door."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from novacron.agent.credentials import Credentials
from novacron.errors import NotFound, Unavailable
from novacron.http_get import STREAM_LIMIT, Answer, get
from novacron.wire import ticket
from novacron.wire.storage import DOOR_PATH, IMAGES_PATH, ImageSource

CONNECT_WITHIN_S = 10.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server(msgspec.Struct, frozen=True):
    """How to reach a server (see AgentConfig.server), what is shown to it and to doors, and the time for tickets."""

    addresses: Callable[[], Sequence[str]]
    credentials: Credentials
    now_s: Callable[[], int]


async def opened(source: ImageSource, server: Server, digest: str, offset: int) -> AsyncIterator[bytes]:
    """The file's bytes from `offset` on.

    :raise NotFound: the source does not have it. :raise Unavailable: it cannot be reached, or the line broke.
    """
    if source.door:
        host, path = source.door, DOOR_PATH + digest
        asked = {"authorization": ticket.issue(server.credentials.ticket_key, digest, server.now_s())}
        streams = await _dial(_door(source))
    else:
        address, streams = await _first(server)
        host, path = urlsplit(address).netloc or "localhost", IMAGES_PATH + digest
        secret = server.credentials.secret
        asked = {"authorization": f"Bearer {secret}"} if secret else {}
    async with get(*streams, host, path, {**asked, "range": f"bytes={offset}-"}) as answer:
        if answer.status == 416:  # there is nothing from that offset on
            return
        async for piece in _from_offset(answer, offset):
            yield piece


async def _from_offset(answer: Answer, offset: int) -> AsyncIterator[bytes]:
    if answer.status == 404:
        raise NotFound("it does not have the file")
    if answer.status == 206 and not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
        raise Unavailable("it answers with another range than asked for")
    if answer.status not in (200, 206):
        raise Unavailable(f"it answers {answer.status}")
    skip = offset if answer.status == 200 else 0
    async for piece in answer.body():
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


async def _dial(dialling: Awaitable[Streams]) -> Streams:
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            return await dialling
    except TimeoutError as late:
        raise Unavailable(f"it does not answer within {CONNECT_WITHIN_S:g} s") from late
    except OSError as wrong:
        raise Unavailable(f"it cannot be reached: {wrong}") from wrong


async def _first(server: Server) -> tuple[str, Streams]:
    """The first server that can be reached. :raise Unavailable: none can."""
    failed = Unavailable("no server is known yet")
    for address in server.addresses():
        try:
            return address, await _dial(_to_server(address, server.credentials))
        except Unavailable as failure:
            failed = failure
    raise failed


async def _to_server(address: str, shown: Credentials) -> Streams:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=STREAM_LIMIT)
    parts = urlsplit(address)
    secure = shown.tls() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    return await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=STREAM_LIMIT)


async def _door(source: ImageSource) -> Streams:
    """A node's door is known by its certificate alone; nothing is sent before that was compared."""
    host, _, port = source.door.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared instead
    streams = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, limit=STREAM_LIMIT)
    shown: bytes = streams[1].get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(shown).hexdigest(), source.fingerprint):
        with contextlib.suppress(OSError):
            streams[1].transport.abort()
        raise Unavailable("it shows another certificate than the node told the server")
    return streams
