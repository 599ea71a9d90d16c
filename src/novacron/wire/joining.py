"""How a node joins: the words of the doors at which it asks for a certificate, and the seal that binds it to its token.

    GET  /agent/v1/membership/ca       anybody: the cluster's CA certificates, to be compared with a fingerprint
    POST /agent/v1/membership/join     with a join token: a first certificate
    POST /agent/v1/membership/renew    with a certificate: the next one

A join token as people carry it: `ncj_<secret>.<sha256 of the CA's certificate in hex>`. The secret alone goes to the
server, and only over TLS that the CA of that fingerprint vouches for.
"""

from __future__ import annotations

import hashlib
import hmac
import re

import msgspec

ROOM = "/agent/v1/membership/"
CA_PATH, JOIN_PATH, RENEW_PATH = ROOM + "ca", ROOM + "join", ROOM + "renew"
MAX_ASK_BYTES = 16 << 10
MAX_ANSWER_BYTES = 64 << 10
TOKEN_PREFIX = "ncj_"  # noqa: S105 (not a password)

_TOKEN = re.compile(r"(ncj_[A-Za-z0-9_-]{43})\.([0-9a-f]{64})\Z")
_CONTEXT = b"novacron join 1"


class CaCertificates(msgspec.Struct, frozen=True, kw_only=True):
    """ca_pem: the one that signs, then others still or already trusted. now_s: the server's clock, Unix seconds."""

    ca_pem: str
    now_s: int


class Join(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    node_id: str
    node_name: str
    csr_pem: str


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    csr_pem: str


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """certificate_pem: the node's. ticket_key_hex: seals tickets for image doors (wire.ticket); a secret."""

    certificate_pem: str
    ca_pem: str
    ticket_key_hex: str


def parted(token: str) -> tuple[str, str] | None:
    """A token's secret and the CA's fingerprint; None: it is no join token."""
    found = _TOKEN.match(token)
    return (found[1], found[2]) if found else None


def seal(secret: str, public_key_der: bytes, node_id: str, name: str) -> str:
    """What a request carries that was made with a token: nobody else can make one for another key or node."""
    key = hmac.digest(secret.encode(), _CONTEXT, "sha256")
    said = b"\0".join((node_id.encode(), name.encode(), public_key_der))
    return hmac.new(key, said, hashlib.sha256).hexdigest()
