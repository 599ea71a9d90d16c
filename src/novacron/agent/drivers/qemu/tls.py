"""The key of one migration: made by the target, held by both ends, given to QEMU as a file and never as text.

PSK rather than certificates: the control plane carries the key to the one other side over its own line, the port
takes nobody without it, and it is gone when the migration is.
"""

from __future__ import annotations

import re
import secrets

from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import DriverError, MonitorFailed, Unsupported
from novacron.model.identity import is_id

OBJECT_ID = "migration-key"
FOLDER = "key"
FILE = "keys.psk"  # QEMU's name for it
KEY_BYTES = 32
GROUP_FILE = "dh-params.pem"  # likewise
MAX_FILE_BYTES = 512

GROUP = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""ffdhe2048 of RFC 7919, public as every group is. Without the file QEMU searches a group of its own, for 200 ms."""

PRIORITY = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305:+AES-256-GCM"
"""Left to itself GnuTLS takes ChaCha20 for keys like ours, which took 1.4 times as long where processors know AES."""

_KEY = re.compile(r"[0-9a-f]{64}\Z")


def new_key() -> str:
    """A random key in hex."""
    return secrets.token_hex(KEY_BYTES)


def write(run_dir: RunDir, migration_id: str, key_hex: str, uid: int | None, gid: int | None) -> None:
    """Put the key where the machine's QEMU, and no other user, can read it.

    :raise Unsupported: the id or the key is not of the form ours have (they become a line of a file).
    :raise DriverError: it cannot be written, or something of the machine's own lies in its place.
    """
    if not is_id(migration_id) or _KEY.match(key_hex) is None:
        raise Unsupported("a migration needs an id and a key of 64 hex digits")
    files = {FILE: f"{migration_id}:{key_hex}\n".encode(), GROUP_FILE: GROUP}
    try:
        run_dir.make_secret(FOLDER, files, uid, gid)
    except OSError as wrong:
        raise DriverError(f"the key of migration {migration_id} cannot be written: {wrong}") from wrong


def read(run_dir: RunDir, migration_id: str) -> str | None:
    """The key this migration was given, while it lasts."""
    line = run_dir.read_secret(FOLDER, FILE, MAX_FILE_BYTES)
    name, _, key = (line or b"").decode("ascii", "replace").strip().partition(":")
    return key if name == migration_id and _KEY.match(key) else None


def erase(run_dir: RunDir) -> None:
    """Remove what `write` left. Nothing there: fine."""
    run_dir.remove_secret(FOLDER, FILE, GROUP_FILE)


async def install(
    monitor: Monitor, run_dir: RunDir, migration_id: str, endpoint: str, *, object_id: str = OBJECT_ID
) -> None:
    """Have QEMU hold the key that `write` left; endpoint: server (target) or client (source).

    :raise MonitorFailed: QEMU cannot read it, or was built without TLS.
    """
    await remove(monitor, object_id=object_id)
    credentials: dict[str, object] = {
        "qom-type": "tls-creds-psk",
        "id": object_id,
        "endpoint": endpoint,
        "priority": PRIORITY,
        "dir": str(run_dir.path / FOLDER),
    }
    if endpoint == "client":
        credentials["username"] = migration_id  # a server looks up the one it is told
    await monitor.execute("object-add", credentials)


async def remove(monitor: Monitor, *, object_id: str = OBJECT_ID) -> None:
    """Have QEMU forget the key. None there: fine."""
    try:
        await monitor.execute("object-del", {"id": object_id})
    except MonitorFailed:
        if not monitor.connected:
            raise
