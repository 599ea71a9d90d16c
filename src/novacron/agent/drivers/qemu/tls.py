"""The key of one migration: made by the target, held by both ends, given to QEMU as a file and never as text.

PSK rather than certificates: the control plane carries the key to the one other side over its own line, the port
takes nobody without it, and it is gone when the migration is.
"""

from __future__ import annotations

import re
import secrets

from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import MonitorFailed, Unsupported
from novacron.model.identity import is_id

OBJECT_ID = "migration-key"
FOLDER = "key"
FILE = "keys.psk"  # QEMU's name for it
KEY_BYTES = 32
MAX_FILE_BYTES = 512

_KEY = re.compile(r"[0-9a-f]{64}\Z")


def new_key() -> str:
    """A random key in hex."""
    return secrets.token_hex(KEY_BYTES)


def write(run_dir: RunDir, migration_id: str, key_hex: str, uid: int | None, gid: int | None) -> None:
    """Put the key where the machine's QEMU, and no other user, can read it.

    :raise Unsupported: the id or the key is not of the form ours have (they become a line of a file).
    """
    if not is_id(migration_id) or _KEY.match(key_hex) is None:
        raise Unsupported("a migration needs an id and a key of 64 hex digits")
    run_dir.make_secret(FOLDER, FILE, f"{migration_id}:{key_hex}\n".encode(), uid, gid)


def read(run_dir: RunDir, migration_id: str) -> str | None:
    """The key this migration was given, while it lasts."""
    line = run_dir.read_secret(FOLDER, FILE, MAX_FILE_BYTES)
    name, _, key = (line or b"").decode("ascii", "replace").strip().partition(":")
    return key if name == migration_id and _KEY.match(key) else None


async def install(monitor: Monitor, run_dir: RunDir, migration_id: str, endpoint: str) -> None:
    """Have QEMU hold the key that `write` left; endpoint: server (target) or client (source).

    :raise MonitorFailed: QEMU cannot read it, or was built without TLS.
    """
    await remove(monitor)
    credentials: dict[str, object] = {
        "qom-type": "tls-creds-psk",
        "id": OBJECT_ID,
        "endpoint": endpoint,
        "dir": str(run_dir.path / FOLDER),
    }
    if endpoint == "client":
        credentials["username"] = migration_id  # a server looks up the one it is told
    await monitor.execute("object-add", credentials)


async def remove(monitor: Monitor) -> None:
    """Have QEMU forget the key. None there: fine."""
    try:
        await monitor.execute("object-del", {"id": OBJECT_ID})
    except MonitorFailed:
        if not monitor.connected:
            raise
