"""Asks the server for certificates: a first one by a join token, the next one by the present one."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from novacron.agent.credentials import of_tls, pinned
from novacron.errors import InvalidInput, NovaCronError, Reason, Unauthenticated, Unavailable, from_data
from novacron.model.node_identity import CLOCK_REMEDY
from novacron.wire import joining as wire

WITHIN_S = 15.0
CLOCKS_DIFFER_S = 120

Word = TypeVar("Word", bound=msgspec.Struct)


def join(server: str, ask: wire.Join, fingerprint: str, now_s: Callable[[], float]) -> wire.Issued:
    """A first certificate. Nothing secret is sent before the server was vouched for by the CA of that fingerprint.

    :raise Unauthenticated: the server is of another cluster, or its certificate or the token does not count.
    :raise NovaCronError: what the server refuses. :raise Unavailable: it cannot be reached.
    """
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname = False
    unknown.verify_mode = ssl.CERT_NONE  # what comes is compared with the fingerprint, and nothing is told
    offered = _ask(server, unknown, "GET", wire.CA_PATH, None, wire.CaCertificates)
    apart_s = offered.now_s - now_s()
    ca_pem = _the_one(offered.ca_pem, fingerprint)
    try:
        return _ask(server, pinned(ca_pem), "POST", wire.JOIN_PATH, ask, wire.Issued)
    except Unavailable as refused:
        if abs(apart_s) > CLOCKS_DIFFER_S and isinstance(refused.__cause__, ssl.SSLCertVerificationError):
            said = f"this node's clock differs from the server's by {abs(apart_s):.0f} s: no certificate can be checked"
            raise Unavailable(said, [Reason("clock.off", said, subject="clock", remedy=CLOCK_REMEDY)]) from refused
        raise


def renew(server: str, context: ssl.SSLContext, ask: wire.Renew) -> wire.Issued:
    """The next certificate. context: shows the present one. :raise NovaCronError: as `join`."""
    return _ask(server, context, "POST", wire.RENEW_PATH, ask, wire.Issued)


def check_server(server: str) -> None:
    """:raise InvalidInput: certificates are not to be had there."""
    parts = urlsplit(server)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise InvalidInput.field("server", "is no address to join at", "give https://host:port of the server")


def _the_one(ca_pem: str, fingerprint: str) -> str:
    """The certificate of that fingerprint alone: the others came from nobody knows where."""
    try:
        offered = x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError:
        offered = []
    for one in offered:
        print_of_one = hashlib.sha256(one.public_bytes(serialization.Encoding.DER)).hexdigest()
        if hmac.compare_digest(print_of_one, fingerprint):
            return one.public_bytes(serialization.Encoding.PEM).decode()
    said = "the server is not of the cluster that the token is for: its CA has another fingerprint"
    remedy = "check the server's address; make the token on the cluster that the node is to join"
    raise Unauthenticated(said, [Reason("ca.fingerprint", said, subject="server", remedy=remedy)])


def _ask(
    server: str, context: ssl.SSLContext, method: str, path: str, body: msgspec.Struct | None, answer: type[Word]
) -> Word:
    parts = urlsplit(server)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, context=context, timeout=WITHIN_S)
    try:
        sent = msgspec.json.encode(body) if body is not None else None
        connection.request(method, path, sent, {"content-type": "application/json"} if sent else {})
        response = connection.getresponse()
        content = response.read(wire.MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as failed:
        reason = of_tls(failed)
        said = reason.message if reason else f"the server at {server} cannot be reached: {failed}"
        raise Unavailable(said, [reason] if reason else []) from failed
    finally:
        connection.close()
    try:
        if response.status != 200:
            raise refusal(content, response.status)
        return msgspec.json.decode(content, type=answer)
    except msgspec.DecodeError as wrong:
        raise Unavailable(f"what answers at {server} is no NovaCron server") from wrong


def refusal(content: bytes, status: int) -> NovaCronError:
    """A refusal as the server sent it: problem details, or an error's data."""
    try:
        data = msgspec.json.decode(content, type=dict[str, object])
        return from_data({"message": data.get("detail", ""), **data})
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Unavailable(f"the server answers {status}, and does not say why")
