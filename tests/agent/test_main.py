"""The agent's settings and what it keeps in its state directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.main import locked, main, own_id, parse, read_secret
from novacron.clock import SystemClock
from novacron.errors import Conflict, InvalidInput
from novacron.model.identity import is_id

FLAGS = {
    "server": "http://127.0.0.1:8470",
    "secret-file": "/s",
    "node-name": "n1",
    "state-dir": "/state",
    "run-dir": "/run/n",
    "pool-dir": "/pool",
}


def words(**changes: str) -> list[str]:
    return [word for name, value in {**FLAGS, **changes}.items() for word in (f"--{name}", value)]


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('migration_host = "192.0.2.7"\nuid_base = 5\nnode_name = "from-file"\n')
    settings = parse(["--config", str(file), *words(), "--uid-base", "6"])
    assert (settings.migration_host, settings.uid_base, settings.node_name) == ("192.0.2.7", 6, "n1")
    assert settings.state_dir == Path("/state")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server", "http://192.0.2.1:80"),
        ("server", "ftp://x"),
        ("node-name", "../x"),
        ("migration-host", "example.com"),
        ("uid-base", "many"),
        ("accelerator", "warp"),
    ],
)
def test_a_wrong_setting_is_named_and_ends_the_program_with_2(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(**{name: value})) == 2
    assert name.replace("-", "_") in capsys.readouterr().err


def test_two_agents_never_share_a_state_directory(tmp_path: Path) -> None:
    with locked(tmp_path / "state"), pytest.raises(Conflict), locked(tmp_path / "state"):
        pass
    with locked(tmp_path / "state"):
        pass
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    made = own_id(tmp_path, SystemClock())
    assert is_id(made)
    assert own_id(tmp_path, SystemClock()) == made
    (tmp_path / "node.id").write_text("who?")
    with pytest.raises(InvalidInput, match="node id"):
        own_id(tmp_path, SystemClock())


def test_a_secret_must_be_there_and_private(tmp_path: Path) -> None:
    file = tmp_path / "agent.secret"
    with pytest.raises(InvalidInput, match="secret_file"):
        read_secret(file)
    for content in (b"", b"  \n", b"a\0b", "ä".encode(), b"\xff"):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(InvalidInput, match="secret_file"):
            read_secret(file)
    file.write_text("correct\n")
    assert read_secret(file) == "correct"
    file.chmod(0o644)
    with pytest.raises(InvalidInput) as refused:
        read_secret(file)
    assert refused.value.reasons[0].remedy == f"chmod 600 {file}"
