"""Opens the agent's WebSocket to the server: over TLS, over loopback, or over a unix socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect, unix_connect

from novacron import __version__
from novacron.errors import InvalidInput
from novacron.wire.agent import MAX_FRAME_BYTES, PATH

PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0

Dial = Callable[[], connect]


def dialer(server: str, secret: str, tls_ca: Path | None = None) -> Dial:
    """How to open a line to `server` (see AgentConfig.server). No proxy of the environment is used.

    :raise InvalidInput: the CA file cannot be read.
    """
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {secret}"},
        "user_agent_header": f"novacron-agent/{__version__}",
        "compression": None,
        "max_size": MAX_FRAME_BYTES,
        "ping_interval": PING_INTERVAL_S,
        "ping_timeout": PING_TIMEOUT_S,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
    }
    if server.startswith("unix:"):
        path = server.removeprefix("unix:")
        return lambda: unix_connect(path, f"ws://localhost{PATH}", **options)
    options["proxy"] = None
    if server.startswith("https://"):
        options["ssl"] = _tls(tls_ca)
    url = "ws" + server.removeprefix("http").rstrip("/") + PATH
    return lambda: connect(url, **options)


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as wrong:
        raise InvalidInput.field("tls_ca", f"cannot read {ca}: {wrong}", "give a file of PEM certificates") from wrong
