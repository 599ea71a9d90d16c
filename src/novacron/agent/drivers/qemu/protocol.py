"""How QEMU and its tools are told where a layer's bytes are. Pure.

Secrets are objects that name a file, never values.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from novacron.agent.drivers.base import FileAt, IscsiAt, NbdAt, RbdAt, Source


def protocol(source: Source) -> dict[str, object]:
    """The options of the node that reads and writes a source; `key_of(source)` must have been made before."""
    match source:
        case FileAt(path):
            return {"driver": "host_device" if _is_device(path) else "file", "filename": str(path)}
        case RbdAt():
            return _rbd(source)
        case NbdAt():
            server: dict[str, object] = {"type": "inet", "host": source.host, "port": str(source.port)}
            if source.socket is not None:
                server = {"type": "unix", "path": str(source.socket)}
            return {"driver": "nbd", "server": server, "export": source.export}
        case IscsiAt():
            where = {"portal": source.portal, "target": source.target, "lun": source.lun}
            who = {"initiator-name": source.initiator} if source.initiator else {}
            if source.password_file is not None:
                who |= {"user": source.user, "password-secret": _key_id(source.password_file)}
            return {"driver": "iscsi", "transport": "tcp", **where, **who}


def key_of(source: Source) -> dict[str, object] | None:
    """The object with the secret a source needs: made before its node, deleted after it. None: it needs none."""
    file = key_file(source)
    if file is None:
        return None
    form = {"format": "base64"} if isinstance(source, RbdAt) else {}  # as Ceph writes its keys
    return {"qom-type": "secret", "id": _key_id(file), "file": str(file), **form}


def key_file(source: Source) -> Path | None:
    """The file with the secret a source needs."""
    match source:
        case RbdAt():
            return source.key_file
        case IscsiAt():
            return source.password_file
        case _:
            return None


def _rbd(source: RbdAt) -> dict[str, object]:
    said: dict[str, object] = {"driver": "rbd", "pool": source.pool, "image": source.image, "conf": str(source.conf)}
    said |= {"user": source.user}
    said |= {"namespace": source.namespace} if source.namespace else {}
    return said | ({"key-secret": _key_id(source.key_file)} if source.key_file is not None else {})


def _key_id(file: Path) -> str:
    return f"key-{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"


def _is_device(path: Path) -> bool:
    return path.is_relative_to("/dev") and not path.is_relative_to("/dev/fd")
