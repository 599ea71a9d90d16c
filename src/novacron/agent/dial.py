"""Opens the agent's WebSocket to the server: over TLS, over loopback, or over a unix socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import connect, unix_connect

from novacron import __version__
from novacron.wire.agent import MAX_FRAME_BYTES, PATH

PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0

Dial = Callable[[], connect]


def dialer(server: str, secret: str, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> Dial:
    """How to open a line to `server` (see AgentConfig.server). No proxy of the environment is used.

    secret: empty: none is shown. tls: asked anew for each https line, for certificates are renewed.
    """
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {secret}"} if secret else {},
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
    url = "ws" + server.removeprefix("http").rstrip("/") + PATH
    if not server.startswith("https://"):
        return lambda: connect(url, **options)
    return lambda: connect(url, ssl=tls(), **options)
