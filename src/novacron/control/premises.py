"""What must lie on disk before the server starts: its directories, the agents' secret, the pool's id."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from novacron import durable
from novacron.config import ServerConfig
from novacron.errors import InvalidInput, Unavailable
from novacron.model.identity import is_id

SECRET_BYTES = 32
SERVER_ID_FILE = "server.id"


def prepare(config: ServerConfig, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> tuple[str, str]:
    """Make what is missing; the agents' secret and the pool's id.

    data_dir is the owner's alone (0700). The pool is shared with nodes, whose machines run as other users: it may
    be passed through (0711), its volumes are for their owners.

    :raise InvalidInput: a path is not what it should be, or cannot be made; names the setting.
    """
    _directory("data_dir", config.data_dir, 0o700)
    _directory("pool_dir", config.pool_dir, 0o711)
    for room in ("images", "volumes"):
        _directory("pool_dir", config.pool_dir / room, 0o711)
    return _secret(config.secret_file, random_bytes), _pool_id(config.pool_dir)


@contextlib.contextmanager
def taken(data_dir: Path) -> Iterator[None]:
    """Hold the directory alone: who begins in it knows that the server before it is gone.

    :raise InvalidInput: another server has it.
    """
    handle = os.open(data_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            remedy = "give each server a directory of its own"
            raise InvalidInput.field("data_dir", f"another server uses {data_dir}", remedy) from held
        yield
    finally:
        os.close(handle)


def server_id(data_dir: Path, made: str) -> str:
    """The server's id, kept in its data directory; `made` at its first start: nodes name the servers they ask by it.

    :raise InvalidInput: the file was damaged, or cannot be used.
    """
    file = data_dir / SERVER_ID_FILE
    try:
        if not file.exists():
            durable.write_durably(file, f"{made}\n".encode())
        found = file.read_text().strip()
    except OSError as wrong:
        remedy = "give a directory of ours"
        raise InvalidInput.field("data_dir", f"cannot use {file}: {wrong.strerror}", remedy) from wrong
    if not is_id(found):
        raise InvalidInput.field("data_dir", f"{file} does not hold a server's id", "delete it: a new one is made")
    return found


def write_new(file: Path, text: str) -> None:
    """A file for its owner alone, on disk when this returns; one that is there stays as it is. :raise OSError"""
    with contextlib.suppress(FileExistsError):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def _directory(field: str, path: Path, mode: int) -> None:
    try:
        if not path.is_dir():
            path.mkdir(parents=True, mode=0o700)
            path.chmod(mode)
        elif field == "data_dir" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(mode)
    except OSError as wrong:
        raise InvalidInput.field(field, f"cannot use {path}: {wrong.strerror}", "give a directory of ours") from wrong


def _secret(file: Path, random_bytes: Callable[[int], bytes]) -> str:
    try:
        write_new(file, random_bytes(SECRET_BYTES).hex() + "\n")
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise InvalidInput.field("agent_secret_file", f"{file} can be read by others", f"chmod 600 {file}")
        secret = file.read_text().strip()
    except OSError as wrong:
        raise InvalidInput.field("agent_secret_file", f"cannot use {file}: {wrong.strerror}") from wrong
    if len(secret) < SECRET_BYTES:
        raise InvalidInput.field(
            "agent_secret_file", f"{file} holds fewer than {SECRET_BYTES} characters", "delete it: a new one is made"
        )
    return secret


def _pool_id(pool_dir: Path) -> str:
    """The id in `pool.id`, made by whoever comes first: this server or an agent."""
    file = pool_dir / "pool.id"
    mine = pool_dir / f".pool.id.{uuid.uuid4()}"
    try:
        if not file.exists():
            try:
                mine.write_text(f"{uuid.uuid4()}\n")
                with contextlib.suppress(FileExistsError):
                    os.link(mine, file)
            finally:
                mine.unlink(missing_ok=True)
        found = file.read_text().strip()
    except OSError as wrong:
        raise InvalidInput.field("pool_dir", f"cannot use {pool_dir}: {wrong.strerror}") from wrong
    if not is_id(found):
        raise Unavailable(f"{file} does not hold a pool's id: the pool is damaged, or this is no pool")
    return found
