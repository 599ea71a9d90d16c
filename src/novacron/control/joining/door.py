"""Lets agents in by their certificates, and shows out at once those whose certificate no longer counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import structlog
from starlette.requests import HTTPConnection

from novacron.clock import Clock
from novacron.control.breath import Bell
from novacron.control.doorman import BySecret, client_of
from novacron.control.joining import certificates, ledger
from novacron.control.joining.ledger import IDENTITIES
from novacron.control.peer import certificate_of, is_tls
from novacron.control.store.base import Store
from novacron.errors import Compacted, Forbidden, NovaCronError, Reason, Unauthenticated
from novacron.model import node_identity
from novacron.model.node_identity import NodeIdentity, Shown
from novacron.wire.agent import Hello

LOOK_EVERY_S = 1.0
_PAGE = 500
_NEEDED = Reason(
    "certificate.missing",
    "over the network an agent shows its certificate",
    subject="certificate",
    remedy=node_identity.JOIN_REMEDY,
)


class Lines(Protocol):
    """The lines that are open; `Link` has them."""

    def certified(self) -> Mapping[str, Shown]:
        """By node id, the certificate that its line was opened with."""
        ...

    def cut(self, node_id: str, reason: str) -> None:
        """End the node's line now."""
        ...


class ByCertificate:
    """The doorman of a server with a cluster's CA. Its TLS listener takes certificates alone.

    What only this machine reaches (a unix socket; loopback without TLS) still takes the secret, which lies in a file of
    the server's own user; but no node that has joined with a certificate is spoken for that way.
    """

    def __init__(self, store: Store, clock: Clock, secret: str) -> None:
        self._store = store
        self._clock = clock
        self._by_secret = BySecret(secret)
        self._identities: dict[str, NodeIdentity] = {}
        self._revision = 0
        self._bell = Bell()
        self._log = structlog.get_logger("door")

    async def start(self) -> None:
        """Read the identities; `run` follows them from here."""
        page = await self._store.list(IDENTITIES, limit=_PAGE)
        self._identities.clear()
        while True:
            for entry in page.entries:
                self._take(entry.key, entry.value)
            if not page.more:
                break
            page = await self._store.list(IDENTITIES, after=page.entries[-1].key, limit=_PAGE)
        self._revision = page.revision

    def certificate(self, connection: HTTPConnection) -> Shown:
        """The certificate shown, which counts. :raise Unauthenticated: there is none, or it does not."""
        der = certificate_of(connection.scope)
        shown = certificates.shown_of(der) if der else None
        if shown is None:
            raise self._refused(connection, _NEEDED)
        reason = node_identity.why_not_honoured(shown, self._identities.get(shown.node_id), self._clock.wall())
        if reason is not None:
            raise self._refused(connection, reason)
        return shown

    def at_door(self, connection: HTTPConnection) -> Shown | None:
        return self.certificate(connection) if is_tls(connection.scope) else self._by_secret.at_door(connection)

    def at_hello(self, shown: Shown | None, hello: Hello) -> None:
        with self._audited(hello):
            if shown is not None and shown.node_id != hello.node_id:
                raise _forbidden("hello.other_node", f"the certificate is node {shown.node_id}'s, the hello another's")
            identity = self._identities.get(hello.node_id)
            if shown is None and identity is not None:
                raise _forbidden("hello.certificate", f"node {identity.name} shows a certificate since it joined")
            if shown is not None and identity is not None and identity.name != hello.node_name:
                raise _forbidden("hello.name", f"the node joined as {identity.name}, not as {_safe(hello)}")

    # -- those who are in ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the identities for ever; returns when the store is closed."""
        while True:
            try:
                async for changes in self._store.watch(IDENTITIES, after=self._revision):
                    for change in changes:
                        self._take(change.key, change.value)
                    self._revision = changes[0].revision
                    self._bell.ring()
            except Compacted:
                await self.start()
                self._bell.ring()
                continue
            return

    async def watch_over(self, lines: Lines) -> None:
        """End lines whose certificate no longer counts, at once when it was revoked; until cancelled."""
        while True:
            for node_id, shown in tuple(lines.certified().items()):
                reason = node_identity.why_line_ends(shown, self._identities.get(node_id), self._clock.wall())
                if reason is not None:
                    self._log.warning("a line was ended", node_id=node_id, code=reason.code, why=reason.message)
                    lines.cut(node_id, reason.message)
            await self._bell.rest(self._clock, LOOK_EVERY_S)

    def _take(self, key: str, value: bytes | None) -> None:
        node_id = key.removeprefix(IDENTITIES)
        if value is None:
            self._identities.pop(node_id, None)
        else:
            self._identities[node_id] = ledger.read(key, value, NodeIdentity)

    def _refused(self, connection: HTTPConnection, reason: Reason) -> Unauthenticated:
        self._log.warning(
            "an agent was refused",
            code=reason.code,
            why=reason.message,
            subject=reason.subject,
            client=client_of(connection),
        )
        return Unauthenticated(reason.message, [reason])

    @contextlib.contextmanager
    def _audited(self, hello: Hello) -> Iterator[None]:
        try:
            yield
        except NovaCronError as refused:
            code = refused.reasons[0].code
            self._log.warning(
                "a hello was refused", code=code, why=refused.message, node=_safe(hello), node_id=hello.node_id
            )
            raise


def _safe(hello: Hello) -> str:
    """The name an agent gives itself, for logs: it may be anything."""
    return ascii(hello.node_name[:64])[1:-1]


def _forbidden(code: str, said: str) -> Forbidden:
    remedy = "an agent speaks for the node it joined as: give it its own state directory and name, or join anew"
    return Forbidden(said, [Reason(code, said, remedy=remedy)])
