"""A ticket for one image file: shown at a node's image door by who knows the agents' secret, good for one digest.

Authorization: NovaCron-Ticket <unix seconds at which it expires>.<hmac-sha256 in hex>
"""

from __future__ import annotations

import hashlib
import hmac

SCHEME = "NovaCron-Ticket"
LASTS_S = 300
_CONTEXT = b"novacron image door 1"


def issue(secret: str, digest: str, now_s: int) -> str:
    """What the Authorization header says to fetch `digest` within LASTS_S from now."""
    expires = now_s + LASTS_S
    return f"{SCHEME} {expires}.{_seal(secret, digest, expires)}"


def holds(header: str, secret: str, digest: str, now_s: int) -> bool:
    """Whether the header is a ticket for that digest that has not expired, nor lasts longer than one may."""
    scheme, _, rest = header.partition(" ")
    expiry, _, shown = rest.partition(".")
    if scheme != SCHEME or not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 12) or not shown.isascii():
        return False
    expires = int(expiry)
    genuine = hmac.compare_digest(shown, _seal(secret, digest, expires))
    return genuine and now_s < expires <= now_s + 2 * LASTS_S  # clocks of nodes differ


def _seal(secret: str, digest: str, expires: int) -> str:
    key = hmac.digest(secret.encode(), _CONTEXT, "sha256")
    return hmac.new(key, f"{digest} {expires}".encode(), hashlib.sha256).hexdigest()
