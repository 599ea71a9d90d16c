"""Who the two ends of one stream are: certificates both sides make from the migration's key, and accept no others than.

It stands for TLS with a pre-shared key, which Python's ssl has from 3.13 on only: nothing but the key has to travel
beforehand, each side knows the other's certificate byte for byte, and TLS 1.3 makes the session's keys anew.
"""

from __future__ import annotations

import datetime
import enum
import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from novacron.errors import InvalidInput

MIN_SECRET_BYTES = 32
_EVER = (datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))


class End(enum.Enum):
    SOURCE = "source"
    TARGET = "target"


def context(secret: bytes, end: End) -> ssl.SSLContext:
    """TLS 1.3 for this end, which shows its certificate and takes the other end's and nobody's else.

    :raise InvalidInput: the secret is too short to be one.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise InvalidInput.field("secret", "is too short", f"give {MIN_SECRET_BYTES} random bytes")
    other = End.TARGET if end is End.SOURCE else End.SOURCE
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if end is End.TARGET else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # it is one certificate that is trusted, not a name
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=_certificate(_key(secret, other), other).public_bytes(_PEM).decode())
    _show(made, _key(secret, end), end)
    return made


_PEM = serialization.Encoding.PEM


def _key(secret: bytes, end: End) -> Ed25519PrivateKey:
    info = f"novacron stream {end.value}".encode()
    seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


def _certificate(key: Ed25519PrivateKey, end: End) -> x509.Certificate:
    """The same from the same key: Ed25519 signs without dice, and nothing else in it varies."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"novacron stream {end.value}")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(_EVER[0]).not_valid_after(_EVER[1])
    return builder.sign(key, None)


def _show(made: ssl.SSLContext, key: Ed25519PrivateKey, end: End) -> None:
    """ssl reads keys from files alone: this one is in memory, and has no name."""
    text = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _certificate(key, end).public_bytes(_PEM) + text)
        made.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
