"""Certificates as this cluster makes and reads them: its CA's, its servers', its nodes'. Keys are EC P-256. No I/O."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, ExtensionOID, NameOID

from novacron.errors import InvalidInput
from novacron.model.node_identity import Asked, Shown, named_by, uri_of

CA_LASTS = datetime.timedelta(days=3650)
SERVER_LASTS = datetime.timedelta(days=90)
MAX_BACKDATE = datetime.timedelta(minutes=5)
"""Certificates begin that much before they are made, or a tenth of their life: clocks differ a little."""

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def new_ca(key: Key, now: datetime.datetime) -> x509.Certificate:
    """A CA of a name of its own, so that two can be trusted beside each other."""
    print_of_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"NovaCron cluster CA {print_of_key.digest.hex()[:12]}")
    usage = _usage(signs=True)
    return (
        _begun(name, name, key.public_key(), now, CA_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(print_of_key, critical=False)
        .sign(key, hashes.SHA256())
    )


def server_certificate(
    ca: x509.Certificate, ca_key: Key, key: Key, hosts: Sequence[str], now: datetime.datetime
) -> x509.Certificate:
    """For whoever is reached at `hosts`, names or IP addresses. It opens no line of a node."""
    alternatives = [_host(host) for host in hosts]
    return _leaf(
        ca,
        ca_key,
        key.public_key(),
        "NovaCron server",
        alternatives,
        ExtendedKeyUsageOID.SERVER_AUTH,
        now,
        SERVER_LASTS,
    )


def node_certificate(
    ca: x509.Certificate,
    ca_key: Key,
    csr: x509.CertificateSigningRequest,
    node: tuple[str, int, str],
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.Certificate:
    """For the key of the request and nothing else of it. node: its id, the term of its identity, its name."""
    node_id, term, name = node
    public = csr.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise TypeError("a request with another key was let through")
    alternatives = [x509.UniformResourceIdentifier(uri_of(node_id, term))]
    return _leaf(ca, ca_key, public, name, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, now, lasts)


def request_of(pem: str) -> x509.CertificateSigningRequest:
    """:raise InvalidInput: it is none."""
    try:
        return x509.load_pem_x509_csr(pem.encode())
    except ValueError as wrong:
        raise InvalidInput.field("csr_pem", "is no certificate signing request", "send one as PEM") from wrong


def asked_of(csr: x509.CertificateSigningRequest) -> Asked:
    """What it asks for. :raise InvalidInput: its parts cannot be read."""
    try:
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        others = [one for one in csr.extensions if one.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
        sealed = [one for one in csr.attributes if one.oid == AttributeOID.CHALLENGE_PASSWORD]
        return Asked(
            key=_kind(csr),
            is_genuine=_is_genuine(csr),
            name=str(names[0].value) if len(csr.subject) == len(names) == 1 else "",
            alternatives=_alternatives(csr.extensions),
            extensions=tuple(one.oid.dotted_string for one in others),
            seal=sealed[0].value.decode("ascii", "replace") if sealed else "",
        )
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as wrong:
        raise InvalidInput.field(
            "csr_pem", f"cannot be read: {wrong}", "send one as `novacron agent join` does"
        ) from wrong


def shown_of(der: bytes) -> Shown | None:
    """What a certificate says, whose signature was checked already; None: it is no node's."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        named = named_by(_alternatives(certificate.extensions))
    except (ValueError, x509.DuplicateExtension):
        return None
    if named is None:
        return None
    return Shown(
        node_id=named[0],
        term=named[1],
        serial=f"{certificate.serial_number:x}",
        not_before=_utc(certificate.not_valid_before_utc),
        not_after=_utc(certificate.not_valid_after_utc),
    )


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses a server's certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in found]


def is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def fingerprint(certificate: x509.Certificate) -> str:
    """sha256 of its DER form, in hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem_of(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_der_of(csr: x509.CertificateSigningRequest) -> bytes:
    return csr.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


# -- parts ---------------------------------------------------------------------------------------------------


def _leaf(
    ca: x509.Certificate,
    ca_key: Key,
    public: ec.EllipticCurvePublicKey,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.Certificate:
    return (
        _begun(_name(name), ca.subject, public, now, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - min(MAX_BACKDATE, lasts / 10))
        .not_valid_after(now + lasts)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _kind(csr: x509.CertificateSigningRequest) -> str:
    public = csr.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return f"ec {public.curve.name}"
    return type(public).__name__.removesuffix("PublicKey").lower()


def _is_genuine(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False


def _alternatives(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(one.value) for one in found)


def _utc(time: datetime.datetime) -> datetime.datetime:
    return time.astimezone(datetime.UTC)
