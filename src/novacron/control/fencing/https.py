"""One HTTPS request to a BMC: its certificate compared before anything is sent; bounded in time and in bytes.

BMCs mostly show a certificate that nobody signed, and often one whose dates have passed: a fingerprint tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ssl
from collections.abc import Mapping

import h11
import msgspec

from novacron.errors import DeadlineExceeded, Reason, Unauthenticated, Unavailable

WITHIN_S = 10.0
MAX_ANSWER_BYTES = 1 << 20
_PIECE_BYTES = 64 << 10


class Answer(msgspec.Struct, frozen=True):
    """A status and a whole body."""

    status: int
    content: bytes


async def ask(
    place: tuple[str, int], method: str, path: str, headers: Mapping[str, str], content: bytes, *, fingerprint: str
) -> Answer:
    """Ask once, on a connection of its own. place: host and port. fingerprint: of the certificate; empty: CAs decide.

    :raise Unauthenticated: another certificate is shown; nothing was sent. :raise DeadlineExceeded: after WITHIN_S.
    :raise Unavailable: it cannot be reached, or what answers is no HTTP server.
    """
    host, port = place
    try:
        async with asyncio.timeout(WITHIN_S):
            return await _ask(place, method, path, headers, content, fingerprint)
    except TimeoutError as late:
        raise DeadlineExceeded(f"{host}:{port} did not answer within {WITHIN_S:.0f} s") from late
    except ssl.SSLCertVerificationError as refused:
        said = (
            f"the certificate of {host}:{port} is of no CA this server trusts for that name: {refused.verify_message}"
        )
        raise Unauthenticated(said, [_unknown(said, "fingerprint")]) from refused
    except (OSError, h11.ProtocolError, asyncio.IncompleteReadError) as failed:
        raise Unavailable(f"{host}:{port} cannot be asked: {failed}") from failed


async def _ask(
    place: tuple[str, int], method: str, path: str, headers: Mapping[str, str], content: bytes, fingerprint: str
) -> Answer:
    host, port = place
    context = _context(by_fingerprint=bool(fingerprint))
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    try:
        if fingerprint:
            _compare(writer, fingerprint, f"{host}:{port}")
        connection = h11.Connection(h11.CLIENT)
        asked = {"host": f"{host}:{port}", "connection": "close", **headers}
        if content:
            asked |= {"content-type": "application/json", "content-length": str(len(content))}
        writer.write(connection.send(h11.Request(method=method, target=path, headers=list(asked.items()))) or b"")
        writer.write((connection.send(h11.Data(data=content)) or b"") if content else b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        return await _read(reader, connection)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _context(*, by_fingerprint: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if by_fingerprint:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it is compared before anything is sent
    return context


def _compare(writer: asyncio.StreamWriter, fingerprint: str, place: str) -> None:
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    seen = hashlib.sha256(shown).hexdigest()
    if not hmac.compare_digest(seen, fingerprint):
        said = f"{place} shows another certificate than the one that was named, of fingerprint {seen}"
        raise Unauthenticated(said, [_unknown(said, "fingerprint")])


def _unknown(said: str, subject: str) -> Reason:
    remedy = "compare the fingerprint with the BMC's own; if it is the BMC, set the device with it"
    return Reason("fence_device.certificate", said, subject=subject, remedy=remedy)


async def _read(reader: asyncio.StreamReader, connection: h11.Connection) -> Answer:
    status, content = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > MAX_ANSWER_BYTES:
                raise Unavailable(f"a BMC answered with more than {MAX_ANSWER_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(content))
