"""The cluster's CA as it lies in the cluster directory: made once, kept for its owner alone, and what it signs.

ca.pem      the CA certificates trusted: the one that signs first, then one that is to come or to go
ca.key      the key of the first (0600); next.key: of one that is to come
server.pem  this server's certificate and its key (0600)
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from novacron.control.joining import certificates
from novacron.control.joining.certificates import Key
from novacron.errors import Conflict, InvalidInput, Reason
from novacron.model.node_identity import renewal_due

CA_FILE, KEY_FILE, SERVER_FILE, NEXT_FILE = "ca.pem", "ca.key", "server.pem", "next.key"
MAX_FILE_BYTES = 64 << 10
NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: dates are looked at by the door, which can say which clock says what."""

_log = structlog.get_logger("door")


class Authority:
    """The CA of a directory, loaded; it signs, and keeps the server's own certificate in date."""

    def __init__(self, directory: Path) -> None:
        """:raise InvalidInput: there is none, others can read its key, or it cannot be used."""
        self._directory = directory
        self._key = _read_key(directory / KEY_FILE)
        self.trusted = _read_certificates(directory / CA_FILE)
        self._ca = self.trusted[0]
        if self._ca.public_key() != self._key.public_key():
            raise _unusable(directory / KEY_FILE, "it is not the key of the first certificate in ca.pem")
        self._context: ssl.SSLContext | None = None

    @property
    def fingerprint(self) -> str:
        return certificates.fingerprint(self._ca)

    @property
    def ca_pem(self) -> str:
        """All that is trusted, the one that signs first."""
        return "".join(map(certificates.pem_of, self.trusted))

    def sign(
        self,
        csr: x509.CertificateSigningRequest,
        node: tuple[str, int, str],
        now: datetime.datetime,
        lasts: datetime.timedelta,
    ) -> x509.Certificate:
        """A node's certificate; see certificates.node_certificate."""
        return certificates.node_certificate(self._ca, self._key, csr, node, now, lasts)

    def context(self) -> ssl.SSLContext:
        """For the server's listeners: who comes may show a certificate of ours, and need not. Always the same one."""
        if self._context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(cadata=self.ca_pem)
            context.verify_mode = ssl.CERT_OPTIONAL
            context.verify_flags |= NO_CHECK_TIME
            context.sslobject_class = _Audited
            try:
                context.load_cert_chain(self._directory / SERVER_FILE)
            except (OSError, ssl.SSLError) as wrong:
                raise _unusable(self._directory / SERVER_FILE, str(wrong)) from wrong
            self._context = context
        return self._context

    def hosts(self) -> list[str]:
        """The names and addresses under which nodes know this server."""
        return certificates.hosts_of(_read_certificates(self._directory / SERVER_FILE, is_secret=True)[0])

    def keep_in_date(self, now: datetime.datetime) -> bool:
        """Make the server's certificate anew when two thirds of its life are over; whether it was. Connections stay."""
        file = self._directory / SERVER_FILE
        mine = _read_certificates(file, is_secret=True)[0]
        due = renewal_due(mine.not_valid_before_utc, mine.not_valid_after_utc)
        if now < due and certificates.is_signed_by(mine, self._ca):
            return False
        self.issue_server(certificates.hosts_of(mine), now)
        if self._context is not None:
            self._context.load_cert_chain(file)
        return True

    def issue_server(self, hosts: Sequence[str], now: datetime.datetime) -> None:
        """Write the server's certificate for these names and addresses, with a new key."""
        key = certificates.new_key()
        made = certificates.server_certificate(self._ca, self._key, key, hosts, now)
        content = certificates.key_pem_of(key) + certificates.pem_of(made).encode()
        _replace(self._directory / SERVER_FILE, content)


class _Audited(ssl.SSLObject):
    """A handshake of which is told when a certificate shown in it is not of our CA: nobody else would."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as refused:
            remedy = "it is of another cluster, or its CA was dropped: have the node join again"
            _log.warning("a certificate was refused", code="certificate.ca", why=refused.verify_message, remedy=remedy)
            raise


# -- making and changing it: by hand, through control.cluster_admin -------------------------------------------


def init(directory: Path, hosts: Sequence[str], now: datetime.datetime) -> Authority:
    """Make the CA and the server's certificate.

    :raise Conflict: there is a CA; nothing was changed. :raise InvalidInput: the directory cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        if (directory / CA_FILE).exists() or not (directory / KEY_FILE).exists():
            _make(directory / KEY_FILE, certificates.key_pem_of(certificates.new_key()))
        key = _read_key(directory / KEY_FILE)  # of an init that was cut off: gone on with
        _replace(directory / CA_FILE, certificates.pem_of(certificates.new_ca(key, now)).encode())
    except FileExistsError as there:
        remedy = "use it, or give another directory; a new CA would lock every node out"
        raise Conflict(
            f"there is a cluster CA in {directory}", [Reason("cluster.exists", "ca.key is there", remedy=remedy)]
        ) from there
    except OSError as wrong:
        raise InvalidInput.field("directory", f"cannot use {directory}: {wrong.strerror}") from wrong
    made = Authority(directory)
    made.issue_server(hosts, now)
    return made


def add_next(directory: Path, now: datetime.datetime) -> str:
    """Make the CA that is to come, trusted from now on; its fingerprint. :raise Conflict: there is one already."""
    trusted = Authority(directory).trusted
    key = certificates.new_key()
    coming = certificates.new_ca(key, now)
    if len(trusted) > 1:
        raise _in_rotation("two CAs are trusted already", "switch to the next one, or drop the old one, first")
    _replace(directory / NEXT_FILE, certificates.key_pem_of(key))
    _replace(directory / CA_FILE, "".join(map(certificates.pem_of, (*trusted, coming))).encode())
    return certificates.fingerprint(coming)


def switch(directory: Path, now: datetime.datetime) -> str:
    """Sign with the next CA from now on; the old one stays trusted. Done halfway before: finished.

    :raise Conflict: there is no next one.
    """
    trusted = _read_certificates(directory / CA_FILE)
    if len(trusted) < 2 or not (directory / NEXT_FILE).exists():
        raise _in_rotation("there is no next CA", "make one: `novacron cluster ca-add`")
    key = _read_key(directory / NEXT_FILE)
    first, second = trusted[:2]
    old, coming = (first, second) if second.public_key() == key.public_key() else (second, first)
    _replace(directory / CA_FILE, "".join(map(certificates.pem_of, (coming, old))).encode())
    (directory / NEXT_FILE).replace(directory / KEY_FILE)
    made = Authority(directory)
    made.keep_in_date(now)
    return made.fingerprint


def drop_old(directory: Path) -> str:
    """Trust only the CA that signs. :raise Conflict: there is nothing to drop, or the next one signs nothing yet."""
    trusted = Authority(directory).trusted
    if (directory / NEXT_FILE).exists():
        raise _in_rotation("the next CA does not sign yet", "switch to it first: `novacron cluster ca-switch`")
    if len(trusted) < 2:
        raise _in_rotation("only one CA is trusted", "there is nothing to drop")
    _replace(directory / CA_FILE, certificates.pem_of(trusted[0]).encode())
    return certificates.fingerprint(trusted[0])


# -- files ---------------------------------------------------------------------------------------------------


def _make(file: Path, content: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    _make(temporary, content)
    temporary.replace(file)


def _read(file: Path, *, is_secret: bool) -> bytes:
    try:
        if is_secret and stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise InvalidInput.field("cluster_dir", f"{file} can be read by others", f"chmod 600 {file}")
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES)
    except OSError as wrong:
        remedy = "make the cluster: `novacron cluster init DIRECTORY --host NAME`"
        raise InvalidInput.field("cluster_dir", f"cannot read {file}: {wrong.strerror}", remedy) from wrong


def _read_certificates(file: Path, *, is_secret: bool = False) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(file, is_secret=is_secret))
    except ValueError as wrong:
        raise _unusable(file, "it holds no certificate") from wrong


def _read_key(file: Path) -> Key:
    try:
        key = load_pem_private_key(_read(file, is_secret=True), None)
    except (ValueError, TypeError) as wrong:
        raise _unusable(file, "it holds no key") from wrong
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable(file, "it holds a key of another kind")
    return key


def _unusable(file: Path, why: str) -> InvalidInput:
    return InvalidInput.field("cluster_dir", f"{file} cannot be used: {why}", "restore it from a copy")


def _in_rotation(why: str, remedy: str) -> Conflict:
    return Conflict(why, [Reason("cluster.rotation", why, remedy=remedy)])
