"""Files from elsewhere: https alone, and only from addresses a stranger's server may have.

A URL comes from a tenant and is fetched by the server, so it must not become a way into the server's own network: a
name is resolved once and the checked address is dialled, every redirect is checked anew, and no proxy is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import msgspec

from novacron.errors import DeadlineExceeded, InvalidInput, NovaCronError, Reason, Unavailable
from novacron.http_get import STREAM_LIMIT, Answer, get

MAX_REDIRECTS = 5
CONNECT_WITHIN_S = 15.0
REDIRECTS = (301, 302, 303, 307, 308)
REMEDY = "give an https address on the public network, or have an admin add it to import_allow"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z")
_TARGET = re.compile(r"[\x21-\x7e]+\Z")
_DENIED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "100.64.0.0/10",
        "192.0.0.0/24",
        "198.18.0.0/15",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/23",
    )
)


class Target(msgspec.Struct, frozen=True):
    """A URL taken apart and found to have the right form."""

    url: str
    host: str
    port: int
    path: str


def target_of(url: str) -> Target:
    """:raise InvalidInput: it is not https, holds a user, or is malformed."""
    try:
        parts = urlsplit(url)
        port = 443 if parts.port is None else parts.port
    except ValueError as wrong:
        raise _refused("url.malformed", f"is no URL: {wrong}") from wrong
    host = parts.hostname or ""
    if parts.scheme != "https":
        raise _refused("url.scheme", f"has the scheme {parts.scheme[:20] or 'none'!r}, not https")
    if parts.username is not None or parts.password is not None:
        raise _refused("url.user", "holds a user or password")
    if not port or not (_HOST.match(host) or _is_v6(host)):
        raise _refused("url.malformed", "has no proper host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _TARGET.match(path):
        raise _refused("url.malformed", "has characters in it that a URL does not have")
    return Target(url, host, port, path)


def is_public(address: Address) -> bool:
    """Whether anybody's server may have it: not loopback, private, link-local, multicast, mapped or translated."""
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.sixtofour or address.teredo):
        return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return not any(address in network for network in _DENIED if network.version == address.version)


def is_allowed(address: Address, target: Target, allow: Iterable[str]) -> bool:
    """Whether the settings name the host, host and port, or the network of the address."""
    names = (target.host, f"{target.host}:{target.port}", f"[{target.host}]:{target.port}")
    for entry in allow:
        if entry in names:
            return True
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(entry, strict=False)
            if network.version == address.version and address in network:
                return True
    return False


def check_address(address: Address, target: Target, allow: Sequence[str]) -> None:
    """:raise InvalidInput: it must not be dialled."""
    if not is_public(address) and not is_allowed(address, target, allow):
        raise _refused("url.address", f"leads to {address}, which is not on the public network")


@contextlib.asynccontextmanager
async def fetch(url: str, allow: Sequence[str], ca_file: Path | None) -> AsyncIterator[Answer]:
    """The answer at the end of at most MAX_REDIRECTS redirects; its status is 200.

    :raise InvalidInput: the URL, or one it redirects to, is not one to be fetched; the reason says why.
    :raise Unavailable: nobody answers there, or not with the file.
    """
    trust = await asyncio.to_thread(_trust, ca_file)
    for _ in range(MAX_REDIRECTS + 1):
        target = target_of(url)
        address = await _resolve(target, allow)
        async with _opened(target, address, trust) as answer:
            if answer.status == 200:
                yield answer
                return
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                raise Unavailable(f"{target.host} answers {answer.status} instead of the file")
            url = urljoin(target.url, answer.headers["location"])
    raise _refused("url.redirects", f"redirects more than {MAX_REDIRECTS} times")


@contextlib.asynccontextmanager
async def _opened(target: Target, address: Address, trust: ssl.SSLContext) -> AsyncIterator[Answer]:
    """Connected to that very address; the certificate is the host's."""
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            reader, writer = await asyncio.open_connection(
                str(address), target.port, ssl=trust, server_hostname=target.host, limit=STREAM_LIMIT
            )
    except TimeoutError as late:
        raise DeadlineExceeded(f"{target.host} does not answer within {CONNECT_WITHIN_S:g} s") from late
    except OSError as wrong:
        raise Unavailable(f"cannot connect to {target.host}: {wrong}") from wrong
    host = f"[{target.host}]" if ":" in target.host else target.host
    named = host if target.port == 443 else f"{host}:{target.port}"
    async with get(reader, writer, named, target.path, {"user-agent": "novacron"}) as answer:
        yield answer


async def _resolve(target: Target, allow: Sequence[str]) -> Address:
    """Every address the name has must be one to be dialled: the first is."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except TimeoutError as late:
        raise Unavailable(f"{target.host} was not resolved within {CONNECT_WITHIN_S:g} s") from late
    except (OSError, UnicodeError) as wrong:
        raise Unavailable(f"cannot resolve {target.host}: {wrong}") from wrong
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        check_address(address, target, allow)
    return addresses[0]


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as wrong:
        raise NovaCronError(f"import_ca: cannot use {ca_file}: {wrong}") from wrong
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _refused(code: str, message: str) -> InvalidInput:
    return InvalidInput(f"url: {message}", [Reason(code, message, subject="url", remedy=REMEDY)])
