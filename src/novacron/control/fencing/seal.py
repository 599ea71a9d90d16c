"""Seals the passwords of fence devices: what lies in the store is of no use without the agents' secret of the cluster.

Every server has that secret already, in a file of its own. A password is sealed together with where it may be sent:
who can write the store but not read the secret cannot have it sent elsewhere.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from novacron.errors import Conflict, Reason
from novacron.model.fence_device import FenceDevice

_CONTEXT = b"novacron fence device 1"
_NONCE_BYTES = 12


class Seal:
    """secret: the agents' secret. random_bytes: a nonce each."""

    def __init__(self, secret: str, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._cipher = AESGCM(hmac.digest(secret.encode(), _CONTEXT, "sha256"))
        self._random_bytes = random_bytes

    def closed(self, device: FenceDevice, password: str) -> FenceDevice:
        """The record with the password in it."""
        nonce = self._random_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, password.encode(), _bound(device))
        return msgspec.structs.replace(device, sealed_password=base64.b64encode(sealed).decode())

    def opened(self, device: FenceDevice) -> str:
        """The password. :raise Conflict: it was sealed with another secret, or for another place."""
        try:
            sealed = base64.b64decode(device.sealed_password, validate=True)
            opened = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(device))
        except (InvalidTag, ValueError) as wrong:
            said = "the fence device's password cannot be read with this server's agent secret"
            remedy = "give all servers the same agent_secret_file; else set the device again"
            raise Conflict(said, [Reason("fence_device.sealed", said, subject=device.id, remedy=remedy)]) from wrong
        return opened.decode()


def _bound(device: FenceDevice) -> bytes:
    return msgspec.json.encode([device.id, device.kind, device.address, device.user, device.fingerprint])
