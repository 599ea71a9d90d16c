"""The client's configuration file: servers under names, one of them in use. It holds no secret, only where one lies.

current = "lab"

[contexts.lab]
server = "https://nova.example:8470"
token_file = "/home/me/.config/novacron/lab.token"
ca_file = "/home/me/.config/novacron/lab-ca.pem"
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from novacron.errors import InvalidInput, NotFound, Reason

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62})\Z")
MAX_FILE_BYTES = 1 << 20


class Context(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One server. Empty: not given."""

    server: str
    token_file: str = ""
    ca_file: str = ""


class Contexts(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """All that the file holds."""

    current: str = ""
    contexts: Mapping[str, Context] = {}

    def named(self, name: str) -> Context:
        """:raise NotFound: no such context."""
        found = self.contexts.get(name)
        if found is None:
            known = ", ".join(self.contexts) or "none yet"
            remedy = f"novacron context set {name} --server ADDRESS"
            raise NotFound(f"there is no context {name}; known: {known}", [Reason("context.unknown", "", "", remedy)])
        return found


def default_file(environment: Mapping[str, str]) -> Path:
    """`client.toml` in the user's configuration directory."""
    base = environment.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environment.get("HOME", "/")) / ".config"
    return home / "novacron" / "client.toml"


def read(file: Path) -> Contexts:
    """What the file holds; nothing when there is none.

    :raise InvalidInput: it cannot be read or holds something else.
    """
    try:
        with file.open("rb") as opened:
            data: dict[str, Any] = tomllib.loads(opened.read(MAX_FILE_BYTES).decode())
        return msgspec.convert(data, Contexts)
    except FileNotFoundError:
        return Contexts()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as wrong:
        raise InvalidInput.field("config", f"cannot use {file}: {wrong}", "correct or remove it") from wrong


def write(file: Path, contexts: Contexts) -> None:
    """Put `contexts` in the file's place, whole or not at all; its directory is made when missing.

    :raise InvalidInput: it cannot be written.
    """
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                opened.write(as_toml(contexts))
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as wrong:
        raise InvalidInput.field("config", f"cannot write {file}: {wrong.strerror}") from wrong


def with_context(contexts: Contexts, name: str, context: Context) -> Contexts:
    """With that context added or replaced; the first one is in use.

    :raise InvalidInput: the name is none.
    """
    if _NAME.match(name) is None:
        raise InvalidInput.field("name", f"{name!r} is not a name for a context", "give letters, digits, '-' and '_'")
    return Contexts(contexts.current or name, {**contexts.contexts, name: context})


def as_toml(contexts: Contexts) -> str:
    """The file's text. A JSON string in ASCII is also a TOML one."""
    rows = [f"current = {json.dumps(contexts.current)}", ""] if contexts.current else []
    for name, context in contexts.contexts.items():
        rows.append(f"[contexts.{name}]")
        rows += [f"{key} = {json.dumps(value)}" for key, value in msgspec.to_builtins(context).items()]
        rows.append("")
    return "\n".join(rows)
