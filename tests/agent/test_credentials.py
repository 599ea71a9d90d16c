"""What a node shows: its certificate where it has joined, the shared secret else; never half of either."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from novacron.agent import credentials
from novacron.agent.credentials import Badge
from novacron.agent.main import credentials_of
from novacron.config import AgentConfig
from novacron.control.joining import authority, certificates
from novacron.errors import InvalidInput
from novacron.wire import joining as wire
from novacron.wire import ticket

NODE = "01890000-0000-7000-8000-000000000001"
NOW = datetime.datetime.now(datetime.UTC)
KEY = ticket.key_of("the secret")


def settings(path: Path, **changed: object) -> AgentConfig:
    fields = {"server": "https://127.0.0.1:1", "node_name": "n", "state_dir": path, "run_dir": path, "pool_dir": path}
    return AgentConfig(**{**fields, **changed})  # type: ignore[arg-type]


def joined(path: Path) -> Badge:
    """As after `novacron agent join`."""
    ca = authority.init(path / "cluster", ["localhost"], NOW)
    key_pem, csr_pem = credentials.request(NODE, "n")
    made = ca.sign(certificates.request_of(csr_pem), (NODE, 3, "n"), NOW, datetime.timedelta(days=30))
    issued = wire.Issued(certificate_pem=certificates.pem_of(made), ca_pem=ca.ca_pem, ticket_key_hex=KEY.hex())
    Badge(path).keep(issued, key_pem)
    return Badge(path)


def a_secret(path: Path) -> Path:
    file = path / "agent.secret"
    file.write_text("the secret\n")
    file.chmod(0o600)
    return file


def test_a_joined_node_shows_its_certificate_over_tls_and_no_secret(tmp_path: Path) -> None:
    badge = joined(tmp_path)
    shown = credentials_of(settings(tmp_path, secret_file=a_secret(tmp_path)), badge)
    assert (shown.secret, shown.ticket_key) == ("", KEY)
    assert badge.name() == "n"
    assert shown.tls() is not shown.tls()  # read anew: it may have been renewed
    assert KEY.hex() not in repr(shown)


def test_over_this_machines_own_socket_the_secret_is_shown(tmp_path: Path) -> None:
    config = settings(tmp_path, server="unix:/s", secret_file=a_secret(tmp_path))
    shown = credentials_of(config, joined(tmp_path))
    assert shown.secret == "the secret"
    assert shown.ticket_key == KEY  # the same door opens to both
    assert "the secret" not in repr(shown)


def test_a_node_with_neither_is_told_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="secret_file") as refused:
        credentials_of(settings(tmp_path), Badge(tmp_path))
    assert "novacron agent join" in refused.value.reasons[0].remedy


@pytest.mark.parametrize("source", ["srv:_novacron._tcp.example.org", "mdns:", "mdns:192.0.2.7"])
def test_servers_are_looked_for_only_by_nodes_that_have_joined(tmp_path: Path, source: str) -> None:
    config = settings(tmp_path, server=source, secret_file=a_secret(tmp_path))
    with pytest.raises(InvalidInput, match="servers") as refused:
        credentials_of(config, Badge(tmp_path))
    assert "novacron agent join" in refused.value.reasons[0].remedy
    badge = joined(tmp_path)
    assert credentials_of(config, badge).secret == ""
    assert len(badge.fingerprints()) == 1
    beside = settings(tmp_path, server="", servers=(source, "unix:/s"), secret_file=a_secret(tmp_path))
    with pytest.raises(InvalidInput, match="servers"):
        credentials_of(beside, badge)


@pytest.mark.parametrize("file", ["node.pem", "ca.pem", "tickets.key"])
@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_identity_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    badge = joined(tmp_path)
    (tmp_path / "identity" / file).write_bytes(content)
    with pytest.raises(InvalidInput) as refused:
        badge.credentials()
    assert "novacron agent join" in refused.value.reasons[0].remedy


def test_its_files_are_its_own_and_its_key_lies_with_its_certificate(tmp_path: Path) -> None:
    badge = joined(tmp_path)
    folder = tmp_path / "identity"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.name for file in folder.iterdir()} == {"node.pem", "ca.pem", "tickets.key"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
    names = badge.certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one.value) for one in names] == [f"urn:novacron:node:{NODE}:3"]
    life = datetime.timedelta(days=30)
    assert abs(badge.renew_at() - (NOW + life * 2 / 3)) < life / 10
