"""A node's identity: what its certificate says, which are honoured, what a node may ask to have signed. Pure.

A certificate names its node in one URI, `urn:novacron:node:<node id>:<term>`, and in nothing else. The term is that
of the node's record of identity: it grows when the node is revoked or joins anew, and older certificates count no more.
"""

from __future__ import annotations

import datetime

import msgspec

from novacron.errors import Reason
from novacron.model.identity import is_id

URI = "urn:novacron:node:"
KEY_KIND = "ec secp256r1"
CLOCK_REMEDY = "set the clocks of node and server (chrony, systemd-timesyncd), then try again"
JOIN_REMEDY = "make a token with `novacron node token create --node NAME` and join again with `novacron agent join`"
MAX_TERM = 1 << 31


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record. expires_at: of the latest certificate of this term. reason: of a revocation, for people."""

    id: str
    name: str
    term: int
    joined_at: datetime.datetime
    expires_at: datetime.datetime
    revoked: bool = False
    reason: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate that our CA signed says."""

    node_id: str
    term: int
    serial: str  # hex, for logs
    not_before: datetime.datetime
    not_after: datetime.datetime


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request to be signed says. extensions: dotted names of all but the alternative names."""

    key: str
    is_genuine: bool  # signed with its own key
    name: str  # the subject's common name
    alternatives: tuple[str, ...]
    extensions: tuple[str, ...]
    seal: str  # binds it to a join token; empty: to none


class JoinToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a join token; the store has its hash as the key, never itself. node: only for this name."""

    created_at: datetime.datetime
    expires_at: datetime.datetime
    created_by: str
    node: str = ""
    used_by: str = ""


def uri_of(node_id: str, term: int = 0) -> str:
    """term 0: as a node asks, who does not say under which."""
    return f"{URI}{node_id}:{term}" if term else f"{URI}{node_id}"


def named_by(alternatives: tuple[str, ...]) -> tuple[str, int] | None:
    """The node and the term that a certificate's alternative names stand for; None: they stand for no node."""
    if len(alternatives) != 1 or not alternatives[0].startswith(URI):
        return None
    node_id, _, term = alternatives[0].removeprefix(URI).partition(":")
    if (
        not is_id(node_id)
        or not (term.isascii() and term.isdigit() and len(term) <= 10)
        or not 0 < int(term) < MAX_TERM
    ):
        return None
    return node_id, int(term)


def why_not_honoured(shown: Shown, identity: NodeIdentity | None, now: datetime.datetime) -> Reason | None:
    """Why a certificate opens nothing; None: it does."""
    if now < shown.not_before:
        said = f"the certificate is valid from {_at(shown.not_before)}, and the server's clock says {_at(now)}"
        return Reason("certificate.clock", said, subject=shown.node_id, remedy=CLOCK_REMEDY)
    if now >= shown.not_after:
        said = f"the certificate expired at {_at(shown.not_after)}, and the server's clock says {_at(now)}"
        remedy = f"if the server's clock is off, set it; else {JOIN_REMEDY}"
        return Reason("certificate.expired", said, subject=shown.node_id, remedy=remedy)
    return why_not_current(shown, identity)


def why_not_current(shown: Shown, identity: NodeIdentity | None) -> Reason | None:
    """Why what was honoured once is not, whatever its dates say; None: it is."""
    if identity is None:
        return Reason("certificate.unknown", "no node has joined under it", subject=shown.node_id, remedy=JOIN_REMEDY)
    if identity.revoked:
        said = f"it was revoked: {identity.reason}"
        return Reason("certificate.revoked", said, subject=identity.name, remedy=JOIN_REMEDY)
    if shown.term != identity.term:
        said = f"the node has joined anew since: term {identity.term}, not {shown.term}"
        remedy = "use the identity of the newer join; if that was not you, revoke the node"
        return Reason("certificate.superseded", said, subject=identity.name, remedy=remedy)
    return None


def why_line_ends(shown: Shown, identity: NodeIdentity | None, now: datetime.datetime) -> Reason | None:
    """Why an open line ends; None: it stays. It outlives the certificate it was opened with if that was renewed."""
    reason = why_not_current(shown, identity)
    if reason is not None or identity is None or now < identity.expires_at:
        return reason
    said = f"the node's last certificate expired at {_at(identity.expires_at)}"
    return Reason("certificate.expired", said, subject=identity.name, remedy=JOIN_REMEDY)


def why_not_signed(asked: Asked, node_id: str, name: str, seal: str) -> Reason | None:
    """Why a request is not signed; None: it is. seal: that of the token shown with it; empty: none was shown."""
    if not asked.is_genuine:
        return Reason("csr.signature", "its signature does not fit its key", subject="csr", remedy="send it unchanged")
    if asked.key != KEY_KIND:
        return Reason("csr.key", f"its key is {asked.key}", subject="csr", remedy=f"make a key of kind {KEY_KIND}")
    if asked.seal != seal:
        said = "it was not made with this join token"
        return Reason("csr.token", said, subject="csr", remedy="join with `novacron agent join`, once a token")
    if asked.alternatives != (uri_of(node_id),) or asked.name != name:
        said = f"it asks for other names than node {name} ({node_id}) has"
        return Reason("csr.names", said, subject="csr", remedy="a node asks for itself alone")
    if asked.extensions:
        said = f"it asks for {', '.join(asked.extensions)}"
        return Reason("csr.extensions", said, subject="csr", remedy="ask for the node's name alone")
    return None


def why_token_fails(token: JoinToken | None, name: str, now: datetime.datetime) -> Reason | None:
    """Why a join token opens nothing; None: it does."""
    remedy = "make a new one with `novacron node token create`"
    if token is None:
        said = "this join token is not known here: it was never made, or is long past"
        return Reason("join_token.unknown", said, subject="token", remedy=remedy)
    if token.used_by:
        said = f"this join token has been used already, by node {token.used_by}"
        return Reason(
            "join_token.used", said, subject="token", remedy=f"{remedy}; if that was not you, revoke the node"
        )
    if now >= token.expires_at:
        said = f"this join token expired at {_at(token.expires_at)}, and the server's clock says {_at(now)}"
        return Reason("join_token.expired", said, subject="token", remedy=remedy)
    if token.node not in ("", name):
        said = f"this join token is for node {token.node}, not for {name}"
        return Reason("join_token.other_node", said, subject="token", remedy=f"join as {token.node}, or {remedy}")
    return None


def why_not_joined(token: JoinToken, node_id: str, name: str, known_as: str) -> Reason | None:
    """Why a node of a known id may not join; None: it may. known_as: by which name the id is known; empty: it is new.

    Else who is handed a token for a new node could take the place of any.
    """
    if not known_as or token.node == name == known_as:
        return None
    said = f"node {node_id} is known already, as {known_as}"
    remedy = f"to have it join anew: `novacron node token create --node {known_as}`"
    return Reason("node.known", said, subject=known_as, remedy=remedy)


def renewal_due(not_before: datetime.datetime, not_after: datetime.datetime) -> datetime.datetime:
    """When a certificate is to be replaced: at two thirds of its life."""
    return not_before + (not_after - not_before) * 2 / 3


def _at(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
