"""Tokens and whom they stand for. The store keeps a token's sha256, never the token.

    access/tokens/<sha256 in hex>    one Principal each, msgspec JSON
    access/begun                     there has been a first token

A token is 256 random bits, so its plain hash is as hard to turn back as any; finding it by hash takes no time that
depends on the secret.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from novacron.control.store.base import Expect, Put, Store
from novacron.errors import Compacted, CompareFailed, StoreCorrupt

TOKENS = "access/tokens/"
BEGUN = "access/begun"
TOKEN_PREFIX = "nct_"  # noqa: S105 (not a password)
TOKEN_BYTES = 32
TOKEN_FILE = "admin.token"  # noqa: S105
MAX_TOKEN_LENGTH = 256


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. permissions: names such as `vms.read`; `*` is every one of them."""

    name: str
    permissions: tuple[str, ...]

    def may(self, permission: str) -> bool:
        return permission in self.permissions or "*" in self.permissions


class Access:
    """Which token is whose. `start` reads the tokens; `run` follows the store, so that a change counts at once."""

    def __init__(self, store: Store, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._store = store
        self._random_bytes = random_bytes
        self._principals: dict[str, Principal] = {}
        self._revision = 0

    def who(self, token: str) -> Principal | None:
        """Whom the token stands for, or None."""
        if len(token) > MAX_TOKEN_LENGTH:
            return None
        return self._principals.get(_digest(token))

    async def start(self, data_dir: Path) -> str | None:
        """Read the tokens; at the very first start make the admin's.

        It is written to `<data_dir>/admin.token` (mode 0600) before the store knows it, so that a crash in between
        loses nothing: the next start takes the token from that file.

        :returns: the new admin token, to be shown once; None when there was one before.
        :raise StoreCorrupt: a token record cannot be read.
        """
        made = None
        if await self._store.get(BEGUN) is None:
            made = await self._first(data_dir / TOKEN_FILE)
        await self._load()
        return made

    async def run(self) -> None:
        """Follow the store for ever; returns when the store is closed."""
        while True:
            try:
                async for changes in self._store.watch(TOKENS, after=self._revision):
                    for change in changes:
                        self._take(change.key, change.value)
                    self._revision = changes[0].revision
            except Compacted:
                await self._load()
                continue
            return

    async def _first(self, file: Path) -> str | None:
        token = TOKEN_PREFIX + base64.urlsafe_b64encode(self._random_bytes(TOKEN_BYTES)).decode().rstrip("=")
        token = _keep(file, token)
        admin = Principal(name="admin", permissions=("*",))
        ops = [Put(BEGUN, b"1"), Put(TOKENS + _digest(token), msgspec.json.encode(admin))]
        try:
            await self._store.commit(ops, [Expect(BEGUN, 0)])
        except CompareFailed:  # another server was first: its token counts
            _drop(file)
            return None
        return token

    async def _load(self) -> None:
        page = await self._store.list(TOKENS, limit=1000)
        self._principals.clear()
        while True:
            for entry in page.entries:
                self._take(entry.key, entry.value)
            if not page.more:
                break
            page = await self._store.list(TOKENS, after=page.entries[-1].key, limit=1000)
        self._revision = page.revision

    def _take(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._principals.pop(key.removeprefix(TOKENS), None)
            return
        try:
            self._principals[key.removeprefix(TOKENS)] = msgspec.json.decode(value, type=Principal)
        except msgspec.DecodeError as wrong:
            raise StoreCorrupt(f"a token record cannot be read: {wrong}") from wrong


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _keep(file: Path, token: str) -> str:
    """Write the token where only its owner reads; a token already there (a first start that was cut off) is kept."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        kept = file.read_text().strip()
        if kept.startswith(TOKEN_PREFIX) and len(kept) == len(token):
            file.chmod(0o600)
            return kept
        _drop(file)  # cut off while it was written: nobody knows that token
        return _keep(file, token)
    with os.fdopen(handle, "w") as out:
        out.write(token + "\n")
        out.flush()
        os.fsync(out.fileno())
    return token


def _drop(file: Path) -> None:
    file.unlink(missing_ok=True)
