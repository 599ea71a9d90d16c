"""The image door: a small TLS listener where other nodes fetch image files this node fetched before.

Its certificate is made at the first start and known by its fingerprint; who comes shows a ticket for one digest, sealed
with the nodes' ticket key. It gives whole files or their ends, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h11
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from novacron.durable import write_durably
from novacron.errors import InvalidInput, NotFound
from novacron.wire import ticket
from novacron.wire.storage import DOOR_PATH

PIECE_BYTES = 1 << 20
MAX_HEAD_BYTES = 8 << 10
MAX_VISITORS = 32
ASK_WITHIN_S = 10.0
SEND_WITHIN_S = 30.0
LASTS = datetime.timedelta(days=365 * 20)

_PATH = re.compile(re.escape(DOOR_PATH) + r"([0-9a-f]{64})\Z")
_RANGE = re.compile(r"bytes=(\d{1,18})-\Z")

FileOf = Callable[[str], Path]
"""A digest's file on this node. :raise NotFound"""


class ImageDoor:
    """Open for the length of `opened`; `address` is host:port then, `fingerprint` the sha256 of what it shows."""

    def __init__(self, file_of: FileOf, ticket_key: bytes, now_s: Callable[[], int]) -> None:
        self._file_of = file_of
        self._ticket_key = ticket_key
        self._now_s = now_s
        self._visits: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("image-door")
        self.address = ""
        self.fingerprint = ""

    @contextlib.asynccontextmanager
    async def opened(self, host: str, port: int, certificate: Path) -> AsyncIterator[None]:
        """Listen on host and port (0: the system picks); afterwards nothing listens and every visitor has gone.

        certificate: where it lies, with its key; made when missing. :raise InvalidInput: it cannot listen there.
        """
        context = await asyncio.to_thread(self._context, certificate)
        try:
            server = await asyncio.start_server(self._let_in, host, port, ssl=context, limit=MAX_HEAD_BYTES)
        except OSError as wrong:
            raise InvalidInput.field("image_door_port", f"cannot listen on {host}:{port}: {wrong.strerror}") from wrong
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            self.address = ""
            server.close()
            for visit in self._visits:
                visit.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)

    # -- one visitor -----------------------------------------------------------------------------------------

    def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._visits) >= MAX_VISITORS:
            writer.transport.abort()
            return
        visit = asyncio.create_task(self._visit(reader, writer), name="image-door")
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                asked = await _asked(reader, connection)
            if asked is not None:
                await self._answer(asked, connection, writer)
                writer.close()
                async with asyncio.timeout(SEND_WITHIN_S):
                    await writer.wait_closed()
        except (OSError, TimeoutError, h11.ProtocolError) as broken:
            self._log.info("a visitor went", why=str(broken) or type(broken).__name__)
        finally:
            writer.transport.abort()

    async def _answer(self, asked: h11.Request, connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in asked.headers}
        path = _PATH.match(asked.target.decode("latin-1"))
        digest = path[1] if path else ""
        if not digest or asked.method != b"GET":
            await _say(connection, writer, 404)
        elif not ticket.holds(headers.get("authorization", ""), self._ticket_key, digest, self._now_s()):
            self._log.warning("a visitor without a ticket")
            await _say(connection, writer, 401)
        else:
            try:
                file = await asyncio.to_thread(self._file_of, digest)
            except NotFound:
                await _say(connection, writer, 404)
            else:
                await _give(connection, writer, file, headers.get("range", ""))

    # -- the certificate -------------------------------------------------------------------------------------

    def _context(self, certificate: Path) -> ssl.SSLContext:
        if not certificate.exists():
            write_durably(certificate, _new_certificate())
        certificate.chmod(0o600)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(certificate)
            der = ssl.PEM_cert_to_DER_cert(_public_part(certificate.read_text()))
        except (OSError, ValueError, ssl.SSLError) as wrong:
            raise InvalidInput.field(
                "state_dir", f"{certificate} cannot be used: {wrong}", "delete it: a new one is made"
            ) from wrong
        self.fingerprint = hashlib.sha256(der).hexdigest()
        return context


async def _asked(reader: asyncio.StreamReader, connection: h11.Connection) -> h11.Request | None:
    """The one request of a connection, None when the visitor went without asking."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(MAX_HEAD_BYTES))
    return event if isinstance(event, h11.Request) else None


async def _say(connection: h11.Connection, writer: asyncio.StreamWriter, status: int) -> None:
    answer = h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
    writer.write((connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    await _drain(writer)


async def _give(connection: h11.Connection, writer: asyncio.StreamWriter, path: Path, wanted: str) -> None:
    """The file from the asked offset on."""
    handle = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        asked = _RANGE.match(wanted)
        offset = int(asked[1]) if asked else 0
        if asked and offset >= size:
            await _say(connection, writer, 416)
            return
        headers = [("content-length", str(size - offset)), ("connection", "close")]
        if asked:
            headers.append(("content-range", f"bytes {offset}-{size - 1}/{size}"))
        head = h11.Response(status_code=206 if asked else 200, headers=headers)
        writer.write(connection.send(head) or b"")
        while offset < size:
            piece = await asyncio.to_thread(os.pread, handle, min(PIECE_BYTES, size - offset), offset)
            offset += len(piece)
            writer.write(connection.send(h11.Data(data=piece)) or b"")
            await _drain(writer)
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await _drain(writer)
    finally:
        os.close(handle)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """A visitor who does not take what he asked for is not waited for."""
    async with asyncio.timeout(SEND_WITHIN_S):
        await writer.drain()


def _new_certificate() -> bytes:
    """A key and a certificate signed with it, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "novacron image door")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LASTS)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + made.public_bytes(serialization.Encoding.PEM)


def _public_part(pem: str) -> str:
    begin = pem.index("-----BEGIN CERTIFICATE-----")
    return pem[begin:]
