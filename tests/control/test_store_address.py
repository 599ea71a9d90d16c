"""What `--store` takes, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.store.address import EtcdAddress, SqliteAddress, parse
from novacron.errors import InvalidInput


def test_a_file() -> None:
    assert parse("sqlite:/var/lib/novacron/store.db") == SqliteAddress(Path("/var/lib/novacron/store.db"))


def test_members_and_a_prefix() -> None:
    assert parse("etcd://localhost:1,127.0.0.1,[::1]:3/a/b") == EtcdAddress(
        ("localhost:1", "127.0.0.1:2379", "[::1]:3"), "a/b"
    )
    assert parse("etcd://localhost") == EtcdAddress(("localhost:2379",), "novacron")


def test_certificates() -> None:
    files = {name: Path(f"/etc/novacron/{name}.pem") for name in ("ca", "cert", "key")}
    query = "&".join(f"{name}={file}" for name, file in files.items())
    assert parse(f"etcd://db1.example:2379,db2.example:2379/prod?{query}") == EtcdAddress(
        ("db1.example:2379", "db2.example:2379"), "prod", **files
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no store's address"),
        ("/var/lib/store.db", "no store's address"),
        ("postgres://x", "no store's address"),
        ("sqlite:", "no store's address"),
        ("sqlite://x/y", "no store's address"),
        ("etcd:localhost", "no store's address"),
        ("etcd://", "not host:port"),
        ("etcd://localhost,", "not host:port"),
        ("etcd://localhost:0", "not host:port"),
        ("etcd://localhost:65536", "not host:port"),
        ("etcd://user:word@localhost", "not host:port"),
        ("etcd://[::1", "cannot be read"),
        ("etcd://localhost/a//b", "prefix"),
        ("etcd://localhost/a%00b", "prefix"),
        ("etcd://localhost/" + "a" * 65, "prefix"),
        ("etcd://localhost?password=x", "options other than"),
        ("etcd://localhost?ca=/a&ca=/b", "options other than"),
        ("etcd://localhost?ca=", "options other than"),
        ("etcd://localhost?ca", "cannot be read"),
        ("etcd://localhost?ca=/a&cert=/b", "one of cert and key"),
        ("etcd://localhost?cert=/a&key=/b", "without ca"),
        ("etcd://localhost,db1.example", "not loopback"),
        ("etcd://10.0.0.1:2379", "not loopback"),
    ],
)
def test_a_wrong_one_is_refused_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        parse(text, "--to")
    assert refused.value.reasons[0].subject == "--to"
    assert "etcd://host:port" in refused.value.reasons[0].remedy
