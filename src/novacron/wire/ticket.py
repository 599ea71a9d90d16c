"""A ticket for one image file: shown at a node's image door by who has the nodes' ticket key, good for one digest.

Authorization: NovaCron-Ticket <unix seconds at which it expires>.<hmac-sha256 in hex>
"""

from __future__ import annotations

import hashlib
import hmac

SCHEME = "NovaCron-Ticket"
LASTS_S = 300
_CONTEXT = b"novacron image door 1"


def key_of(secret: str) -> bytes:
    """What tickets are sealed with where the agents' secret is this one. It does not tell the secret."""
    return hmac.digest(secret.encode(), _CONTEXT, "sha256")


def issue(key: bytes, digest: str, now_s: int) -> str:
    """What the Authorization header says to fetch `digest` within LASTS_S from now."""
    expires = now_s + LASTS_S
    return f"{SCHEME} {expires}.{_seal(key, digest, expires)}"


def holds(header: str, key: bytes, digest: str, now_s: int) -> bool:
    """Whether the header is a ticket for that digest that has not expired, nor lasts longer than one may."""
    scheme, _, rest = header.partition(" ")
    expiry, _, shown = rest.partition(".")
    if scheme != SCHEME or not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 12) or not shown.isascii():
        return False
    expires = int(expiry)
    genuine = hmac.compare_digest(shown, _seal(key, digest, expires))
    return genuine and now_s < expires <= now_s + 2 * LASTS_S  # clocks of nodes differ


def _seal(key: bytes, digest: str, expires: int) -> str:
    return hmac.new(key, f"{digest} {expires}".encode(), hashlib.sha256).hexdigest()
