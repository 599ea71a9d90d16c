"""Who decides which agents may come in: by a certificate of their own, or by the secret all of them share."""

from __future__ import annotations

import hmac
from typing import Protocol

import structlog
from starlette.requests import HTTPConnection

from novacron.errors import Reason, Unauthenticated
from novacron.model.node_identity import Shown
from novacron.wire.agent import Hello


class Doorman(Protocol):
    """What the line and the agents' other doors ask before they open."""

    def at_door(self, connection: HTTPConnection) -> Shown | None:
        """The certificate shown; None: none, but the secret.

        :raise Unauthenticated: neither counts here; the log has been told.
        """
        ...

    def at_hello(self, shown: Shown | None, hello: Hello) -> None:
        """:raise Forbidden: the agent speaks for a node that is not its own."""
        ...


class BySecret:
    """The doorman of a server without a cluster's CA, and of the listeners that only this machine reaches."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("an empty secret would let anybody in")
        self._secret = f"Bearer {secret}".encode()
        self._log = structlog.get_logger("link")

    def at_door(self, connection: HTTPConnection) -> Shown | None:
        shown = connection.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(shown, self._secret):
            remedy = "give the agent the server's agent.secret, or join it to the cluster"
            self._log.warning("an agent showed a wrong secret", client=client_of(connection))
            reason = Reason("secret.wrong", "the agents' secret is needed", subject="authorization", remedy=remedy)
            raise Unauthenticated("the agents' secret is needed here, and this is not it", [reason])
        return None

    def at_hello(self, shown: Shown | None, hello: Hello) -> None:
        """With one secret for all, an agent's word is all there is."""


def client_of(connection: HTTPConnection) -> str:
    """Where it comes from, for logs."""
    return f"{connection.client.host}:{connection.client.port}" if connection.client else "unix socket"
