"""What this node shows to the server and to other nodes, and by what it knows the server.

A node that has joined keeps it in `identity` in its state directory:

    node.pem       its certificate and key, one file, so that they change together (0600)
    ca.pem         the CA certificates by which it knows servers
    tickets.key    what it seals tickets for other nodes' image doors with (0600)
"""

from __future__ import annotations

import datetime
import http.client
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from novacron.durable import write_durably
from novacron.errors import InvalidInput, Reason
from novacron.model.node_identity import CLOCK_REMEDY, renewal_due, uri_of
from novacron.wire import joining as wire
from novacron.wire import ticket

FOLDER, NODE_FILE, CA_FILE, TICKETS_FILE = "identity", "node.pem", "ca.pem", "tickets.key"
MAX_FILE_BYTES = 64 << 10
_KEY = re.compile(r"[0-9a-f]{64}\Z")
_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's numbers for what is wrong with a certificate's dates


class Credentials(msgspec.Struct, frozen=True):
    """secret: shown on the line; empty: the certificate is. tls: made anew for each connection to the server."""

    secret: str
    ticket_key: bytes
    tls: Callable[[], ssl.SSLContext]

    def __repr__(self) -> str:
        """Without the secrets."""
        return "Credentials()"


def by_secret(secret: str, tls_ca: Path | None) -> Credentials:
    """Of a node that shares the server's secret. :raise InvalidInput: the CA file cannot be read."""

    def tls() -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=tls_ca)
        except (OSError, ssl.SSLError) as wrong:
            remedy = "give a file of PEM certificates"
            raise InvalidInput.field("tls_ca", f"cannot read {tls_ca}: {wrong}", remedy) from wrong

    if tls_ca is not None:
        tls()
    return Credentials(secret, ticket.key_of(secret), tls)


class Badge:
    """The identity of a node that has joined, as it lies on disk: read anew whenever it is needed."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    @property
    def is_there(self) -> bool:
        return (self._folder / NODE_FILE).exists()

    def credentials(self) -> Credentials:
        """:raise InvalidInput: the files cannot be used."""
        self.context()
        text = _read(self._folder / TICKETS_FILE).decode("ascii", "replace").strip()
        if _KEY.match(text) is None:
            raise _damaged(self._folder / TICKETS_FILE, "it holds no key")
        return Credentials("", bytes.fromhex(text), self.context)

    def context(self) -> ssl.SSLContext:
        """Shows the newest certificate, and trusts what the cluster's CAs signed, nothing else.

        :raise InvalidInput: the files cannot be used.
        """
        try:
            context = pinned(_read(self._folder / CA_FILE).decode("ascii", "replace"))
            context.load_cert_chain(self._folder / NODE_FILE)
        except (OSError, ValueError) as wrong:
            raise _damaged(self._folder / NODE_FILE, str(wrong)) from wrong
        return context

    def certificate(self) -> x509.Certificate:
        """:raise InvalidInput: it cannot be read."""
        try:
            return x509.load_pem_x509_certificate(_read(self._folder / NODE_FILE))
        except ValueError as wrong:
            raise _damaged(self._folder / NODE_FILE, "it holds no certificate") from wrong

    def fingerprints(self) -> frozenset[str]:
        """Of the cluster's CAs that this node trusts, SHA-256 in hex. :raise InvalidInput: they cannot be read."""
        try:
            trusted = x509.load_pem_x509_certificates(_read(self._folder / CA_FILE))
        except ValueError as wrong:
            raise _damaged(self._folder / CA_FILE, "it holds no certificate") from wrong
        return frozenset(one.fingerprint(hashes.SHA256()).hex() for one in trusted)

    def name(self) -> str:
        """The name the node joined under."""
        return str(self.certificate().subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def renew_at(self) -> datetime.datetime:
        """When the certificate is to be replaced."""
        certificate = self.certificate()
        return renewal_due(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def keep(self, issued: wire.Issued, key_pem: bytes) -> None:
        """Write what was issued for the key, the certificate last: until then the old one counts whole.

        :raise InvalidInput: it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(self._folder / TICKETS_FILE, issued.ticket_key_hex.encode() + b"\n")
            write_durably(self._folder / CA_FILE, issued.ca_pem.encode())
            write_durably(self._folder / NODE_FILE, key_pem + issued.certificate_pem.encode())
        except OSError as wrong:
            remedy = "make room, or let the agent's user write there"
            raise InvalidInput.field(
                "state_dir", f"cannot write to {self._folder}: {wrong.strerror}", remedy
            ) from wrong


def of_tls(failure: BaseException) -> Reason | None:
    """What a failure to connect means for a node, somewhere in the chain of causes; None: it speaks for itself."""
    seen: BaseException | None = failure
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return _of_verification(seen)
        if isinstance(seen, EOFError | http.client.RemoteDisconnected):
            said = "the server ended the connection without a word"
            remedy = "if it goes on, see its log: so it refuses a certificate whose CA it does not know"
            return Reason("connection.ended", said, remedy=remedy)
        seen = seen.__cause__ or seen.__context__
    return None


def _of_verification(failed: ssl.SSLCertVerificationError) -> Reason:
    if failed.verify_code in (_NOT_YET, _EXPIRED):
        said = f"by this node's clock the server's certificate does not count: {failed.verify_message}"
        return Reason("certificate.clock", said, subject="clock", remedy=CLOCK_REMEDY)
    said = f"the server is not vouched for by this cluster's CA: {failed.verify_message}"
    remedy = "check the address, and that the server's certificate has this name (`novacron cluster issue-server`)"
    return Reason("server.unknown", said, subject="server", remedy=remedy)


def request(node_id: str, name: str, secret: str = "") -> tuple[bytes, str]:
    """A new key and the request to sign it, both PEM. secret: of the join token it is bound to; empty: to none."""
    key = ec.generate_private_key(ec.SECP256R1())
    encoding = serialization.Encoding
    building = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri_of(node_id))]), critical=False)
    )
    if secret:
        public = key.public_key().public_bytes(encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        sealed = wire.seal(secret, public, node_id, name).encode()
        building = building.add_attribute(AttributeOID.CHALLENGE_PASSWORD, sealed)
    key_pem = key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem, building.sign(key, hashes.SHA256()).public_bytes(encoding.PEM).decode()


def pinned(ca_pem: str) -> ssl.SSLContext:
    """Trusts servers of these CAs alone, by their names too. :raise ssl.SSLError, ValueError: there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES)
    except OSError as wrong:
        raise _damaged(file, str(wrong.strerror)) from wrong


def _damaged(file: Path, why: str) -> InvalidInput:
    return InvalidInput.field("state_dir", f"{file} cannot be used: {why}", "join again with `novacron agent join`")
