"""Decides who gets a certificate: tokens made and used up, nodes joined, renewed and revoked, each by one write."""

from __future__ import annotations

import base64
import datetime
import secrets
from collections.abc import Callable

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.joining import certificates, ledger
from novacron.control.joining.authority import Authority
from novacron.control.joining.ledger import IDENTITIES, NAMES
from novacron.control.once import Once
from novacron.control.store.base import Expect, Put
from novacron.control.store.kinds import NODES
from novacron.control.store.records import WRITE_TRIES, Records, Write
from novacron.errors import (
    CompareFailed,
    Conflict,
    Forbidden,
    InvalidInput,
    NameTaken,
    NovaCronError,
    Reason,
    Unauthenticated,
)
from novacron.model import node_identity
from novacron.model.identity import check_name, is_id
from novacron.model.node_identity import JoinToken, NodeIdentity, Shown
from novacron.wire import joining as wire

TOKEN_BYTES = 32
NO_CLUSTER = "this server has no cluster CA"
NO_CLUSTER_REMEDY = (
    "make one with `novacron cluster init DIRECTORY`, then `novacron server run --cluster-dir DIRECTORY`"
)


class Signing(msgspec.Struct, frozen=True):
    """What a server with a cluster's CA signs with. lasts: of nodes' certificates. ticket_key: see wire.ticket."""

    authority: Authority
    lasts: datetime.timedelta
    ticket_key: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"Signing({self.authority.fingerprint})"


class JoinService:
    """signing: None: this server has no cluster's CA, and gives no certificates."""

    def __init__(
        self,
        records: Records,
        clock: Clock,
        signing: Signing | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._records = records
        self._clock = clock
        self._signs = signing
        self._random_bytes = random_bytes
        self._log = structlog.get_logger("joining")

    @property
    def signing(self) -> Signing:
        """:raise Conflict: this server was started without a cluster's CA."""
        if self._signs is None:
            raise Conflict(NO_CLUSTER, [Reason("cluster.none", NO_CLUSTER, remedy=NO_CLUSTER_REMEDY)])
        return self._signs

    async def make_token(self, node: str, lasts: datetime.timedelta, who: str, once: Once) -> tuple[str, JoinToken]:
        """A join token as people carry it, and its record. node: only for this name, which may be known; empty: for a
        new node of any name.

        :raise Conflict: no cluster; or it was made before, by a request with the same key.
        """
        authority = self.signing.authority
        random = base64.urlsafe_b64encode(self._random_bytes(TOKEN_BYTES)).decode().rstrip("=")
        secret, now = wire.TOKEN_PREFIX + random, self._clock.wall()
        token = JoinToken(created_at=now, expires_at=now + lasts, created_by=who, node=node)
        try:
            await self._records.commit(ledger.put(ledger.token_key(secret), token, 0), *once.note(token, 201))
        except CompareFailed as lost:
            said = "a request with this Idempotency-Key has made a token before; it was shown then and is kept nowhere"
            raise Conflict(said, [Reason("join_token.shown", said, remedy="ask again with a new key")]) from lost
        self._log.info("a join token was made", by=who, node=node or "any", expires=token.expires_at.isoformat())
        return f"{secret}.{authority.fingerprint}", token

    async def join(self, ask: wire.Join, client: str) -> wire.Issued:
        """A node's first certificate; its token is used up by that.

        :raise Unauthenticated: the token opens nothing. :raise Forbidden: the request is not what it may be, or the
            node is known. :raise NameTaken, InvalidInput: said of the node. Refusals leave the token as it was.
        """
        try:
            for _ in range(WRITE_TRIES):
                try:
                    issued = await self._join_once(ask)
                except CompareFailed:
                    continue  # the token, the node or its name was taken meanwhile: look again
                self._log.info("a node joined", node=ask.node_name, node_id=ask.node_id, client=client)
                return issued
            raise CompareFailed("others are joining under the same name or token: try again")
        except NovaCronError as refused:
            self._audit("a node was refused to join", refused, node=ascii(ask.node_name[:64])[1:-1], client=client)
            raise

    async def renew(self, shown: Shown, ask: wire.Renew, client: str) -> wire.Issued:
        """The next certificate of a node whose present one was honoured.

        :raise Unauthenticated: it was revoked meanwhile. :raise Forbidden: the request is not what it may be.
        """
        store, key = self._records.store, IDENTITIES + shown.node_id
        try:
            for _ in range(WRITE_TRIES):
                identity, seen = await ledger.find(store, key, NodeIdentity)
                now = self._clock.wall()
                reason = node_identity.why_not_honoured(shown, identity, now)
                if reason is not None or identity is None:
                    raise _unauthenticated(reason)
                issued, expires = self._issue(ask.csr_pem, "", identity, now)
                renewed = msgspec.structs.replace(identity, expires_at=max(expires, identity.expires_at))
                try:
                    await self._records.commit(ledger.put(key, renewed, seen))
                except CompareFailed:
                    continue
                self._log.info(
                    "a certificate was renewed", node=identity.name, until=expires.isoformat(), client=client
                )
                return issued
            raise CompareFailed("the node's identity is being changed by others: try again")
        except NovaCronError as refused:
            self._audit("a node was refused a new certificate", refused, node_id=shown.node_id, client=client)
            raise

    async def revoke(self, ref: str, who: str, held: frozenset[str] | None, once: Once) -> NodeIdentity:
        """Nothing the node shows is honoured from now on; its open lines end. Revoked already, or
        once by a request with the same key: fine.

        :raise NotFound, PreconditionFailed: said of the node. :raise Conflict: it has no certificate to revoke.
        """
        stored = self._records.find(NODES, ref)
        check_match(held, stored)
        node = stored.record
        key = IDENTITIES + node.id
        for _ in range(WRITE_TRIES):
            write = await ledger.revocation(self._records.store, node.id, f"by {who}")
            try:
                if write is not None and not await once.is_used():
                    await self._records.commit(write, *once.note(node, 200))
                    self._log.warning("a node was revoked", node=node.name, node_id=node.id, by=who)
            except CompareFailed:
                continue
            identity, _ = await ledger.find(self._records.store, key, NodeIdentity)
            if identity is None:
                remedy = "it shows the agents' secret over this machine's own socket: stop its agent"
                raise Conflict(
                    f"node {node.name} has joined with no certificate",
                    [Reason("certificate.none", "there is nothing to revoke", subject=node.name, remedy=remedy)],
                )
            return identity
        raise CompareFailed(f"the identity of node {node.name} is being changed by others: try again")

    # -- parts -----------------------------------------------------------------------------------------------

    async def _join_once(self, ask: wire.Join) -> wire.Issued:
        store, now = self._records.store, self._clock.wall()
        check_name(ask.node_name, "node_name")
        if not is_id(ask.node_id):
            raise InvalidInput.field("node_id", "is not a node id", "send the one in the agent's state directory")
        token_key = ledger.token_key(ask.token)
        token, token_seen = await ledger.find(store, token_key, JoinToken)
        reason = node_identity.why_token_fails(token, ask.node_name, now)
        if reason is not None or token is None:
            raise _unauthenticated(reason)
        identity, seen = await ledger.find(store, IDENTITIES + ask.node_id, NodeIdentity)
        claim = await self._claim(ask, token, identity)
        term = identity.term + 1 if identity else 1
        joined = NodeIdentity(id=ask.node_id, name=ask.node_name, term=term, joined_at=now, expires_at=now)
        issued, expires = self._issue(ask.csr_pem, ask.token, joined, now)
        await self._records.commit(
            ledger.put(token_key, msgspec.structs.replace(token, used_by=ask.node_name), token_seen),
            ledger.put(IDENTITIES + ask.node_id, msgspec.structs.replace(joined, expires_at=expires), seen),
            claim,
        )
        return issued

    async def _claim(self, ask: wire.Join, token: JoinToken, identity: NodeIdentity | None) -> Write:
        """What makes the name the node's. :raise Forbidden: the node is known. :raise NameTaken: another has it."""
        node = self._records.get(NODES, ask.node_id)
        known_as = node.record.name if node else identity.name if identity and not identity.revoked else ""
        reason = node_identity.why_not_joined(token, ask.node_id, ask.node_name, known_as)
        if reason is not None:
            raise Forbidden(reason.message, [reason])
        key = NAMES + ask.node_name
        holder = await self._records.store.get(key)
        record = await self._records.store.get(NODES.name_key(ask.node_name))
        if any(one is not None and one.value != ask.node_id.encode() for one in (holder, record)):
            remedy = "give another --node-name; if that node is gone for good, delete it first"
            reason = Reason("node.name_taken", "another node has this name", subject=ask.node_name, remedy=remedy)
            raise NameTaken(f"the name {ask.node_name} is taken by another node", [reason])
        return Write((Put(key, ask.node_id.encode()),), (Expect(key, holder.modified if holder else 0),))

    def _issue(
        self, csr_pem: str, secret: str, identity: NodeIdentity, now: datetime.datetime
    ) -> tuple[wire.Issued, datetime.datetime]:
        """The certificate, and when it expires. :raise Forbidden: what is asked for is not what may be."""
        csr = certificates.request_of(csr_pem)
        asked = certificates.asked_of(csr)
        name = identity.name
        seal = wire.seal(secret, certificates.public_der_of(csr), identity.id, name) if secret else ""
        reason = node_identity.why_not_signed(asked, identity.id, name, seal)
        if reason is not None:
            raise Forbidden(f"the certificate request is refused: {reason.message}", [reason])
        signing = self.signing
        made = signing.authority.sign(csr, (identity.id, identity.term, name), now, signing.lasts)
        issued = wire.Issued(
            certificate_pem=certificates.pem_of(made),
            ca_pem=signing.authority.ca_pem,
            ticket_key_hex=signing.ticket_key.hex(),
        )
        return issued, made.not_valid_after_utc

    def _audit(self, what: str, refused: NovaCronError, **more: str) -> None:
        codes = [reason.code for reason in refused.reasons] or [refused.code]
        self._log.warning(what, code=codes[0], why=refused.message, **more)


def _unauthenticated(reason: Reason | None) -> Unauthenticated:
    if reason is None:
        raise ValueError("a refusal needs a reason")
    return Unauthenticated(reason.message, [reason])
