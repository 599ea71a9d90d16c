"""`node token create`, `node revoke`, `agent join` and `cluster …`: what is sent, said and refused."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from novacron.agent import join
from novacron.control import cluster_admin
from novacron.control.joining.authority import Authority
from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, said

TOKEN = "ncj_" + "A" * 43 + "." + "0" * 64


def test_a_token_is_printed_alone_and_asked_for_by_its_options(room: ControlRoom, run: Run) -> None:
    answer = {"token": TOKEN, "node": "node-4", "expires_at": "2026-11-23T12:00:00Z"}
    room.on("POST", "/node-tokens", said(answer, status=201))
    assert run("node token create --node node-4 --lasts 5m").stdout == f"{TOKEN}\n"
    assert msgspec.json.decode(room.bodies[-1]) == {"node": "node-4", "lasts_s": 300}


def test_a_node_is_revoked(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/nodes/node-1/revoke", said({"node_id": "i", "node": "node-1", "reason": "by admin"}))
    assert run("node revoke node-1 --yes").stdout == "node-1: revoked\n"


@pytest.mark.parametrize("text", ["", "nonsense", TOKEN[:-1], TOKEN + "0", "ncj_" + "A" * 43])
def test_what_is_no_token_is_not_sent(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    words = ["join", "https://127.0.0.1:1", "--token-file", str(file), "--node-name", "n", "--state-dir", str(tmp_path)]
    assert join.main(words) == 1
    assert "token_file" in capsys.readouterr().err
    file.chmod(0o604)
    assert join.main(words) == 1
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "unix:/s", "https://", "https://h/path"])
def test_certificates_are_had_over_https_alone(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["join", url, "--token-file", "/dev/null", "--node-name", "n", "--state-dir", str(tmp_path)]
    assert join.main(words) == 1
    assert "https://host:port" in capsys.readouterr().err


def test_renewing_needs_a_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert join.main(["renew", "https://127.0.0.1:1", "--state-dir", str(tmp_path)]) == 1
    assert "novacron agent join" in capsys.readouterr().err


def test_a_cluster_is_made_once_and_its_keys_are_its_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cluster"
    words = ["init", str(folder), "--host", "nova.example", "--host", "192.0.2.1"]
    assert cluster_admin.main(words) == 0
    assert Authority(folder).fingerprint in capsys.readouterr().out
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert cluster_admin.main(words) == 1
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    mine = x509.load_pem_x509_certificate(before["server.pem"])
    names = mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one.value) for one in names] == ["nova.example", "192.0.2.1", "localhost", "127.0.0.1", "::1"]


@pytest.mark.parametrize("host", ["a b", "-x", "x/y", "", "a" * 300, "x\n"])
def test_what_is_no_host_gets_no_certificate(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_admin.main(["init", str(tmp_path / "c"), f"--host={host}"]) == 1
    assert "--host" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_init_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    assert cluster_admin.main(["init", str(folder)]) == 0
    key = (folder / "ca.key").read_bytes()
    (folder / "ca.pem").unlink()
    (folder / "server.pem").unlink()
    assert cluster_admin.main(["init", str(folder)]) == 0
    assert (folder / "ca.key").read_bytes() == key


@pytest.mark.parametrize("step", ["ca-switch", "ca-drop"])
def test_steps_of_a_rotation_come_in_order(tmp_path: Path, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "cluster")
    assert cluster_admin.main(["init", folder]) == 0
    assert cluster_admin.main([step, folder]) == 1
    assert cluster_admin.main(["ca-add", folder]) == 0
    assert cluster_admin.main(["ca-drop", folder]) == 1
    assert cluster_admin.main(["ca-add", folder]) == 1
    assert cluster_admin.main(["ca-switch", folder]) == 0
    assert len(Authority(tmp_path / "cluster").trusted) == 2
    assert cluster_admin.main(["ca-drop", folder]) == 0
    assert len(Authority(tmp_path / "cluster").trusted) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_switch_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    for words in (["init", str(folder)], ["ca-add", str(folder)]):
        assert cluster_admin.main(words) == 0
    bundle = x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())
    (folder / "ca.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in reversed(bundle))
    )  # then it died
    assert cluster_admin.main(["ca-switch", str(folder)]) == 0
    assert Authority(folder).trusted[0] == bundle[1]


def test_the_servers_certificate_is_made_anew_at_two_thirds_of_its_life(tmp_path: Path) -> None:
    assert cluster_admin.main(["init", str(tmp_path), "--host", "nova.example"]) == 0
    authority = Authority(tmp_path)
    now = datetime.datetime.now(datetime.UTC)
    before = (tmp_path / "server.pem").read_bytes()
    assert not authority.keep_in_date(now + datetime.timedelta(days=55))
    assert authority.keep_in_date(now + datetime.timedelta(days=61))
    after = (tmp_path / "server.pem").read_bytes()
    assert after != before
    names = x509.load_pem_x509_certificate(after).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert "nova.example" in [str(one.value) for one in names.value]


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_admin.main(["init", str(tmp_path / "c")]) == 0
    (tmp_path / "c" / "ca.key").chmod(0o640)
    assert cluster_admin.main(["issue-server", str(tmp_path / "c")]) == 1
    assert "chmod 600" in capsys.readouterr().err
