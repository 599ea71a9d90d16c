"""What a machine keeps beside its volumes, read and written where its user, who may be hostile, has every right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import keeping, tpm
from novacron.errors import DriverError, Unsupported
from novacron.model.machine import Belonging

VARIABLES = b"\x11" * 4096
CHIP = b"seeds and keys"


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    made = tmp_path / "vm"
    (made / "tpm-3").mkdir(parents=True)
    (made / "vars.fd").write_bytes(VARIABLES)
    (made / "tpm-3" / "tpm2-00.permall").write_bytes(CHIP)
    tpm.claim(str(made), "tpm-3")
    return made


def test_what_is_packed_is_there_once_it_is_unpacked(keep: Path, tmp_path: Path) -> None:
    files = keeping.pack(keep, with_tpm=True)
    there = tmp_path / "there"
    there.mkdir()
    for _ in range(2):  # asked again it is written again
        keeping.unpack(there, files, None, None)
    assert (there / "vars.fd").read_bytes() == VARIABLES
    assert (there / tpm.current(there) / "tpm2-00.permall").read_bytes() == CHIP
    assert (there / "vars.fd").stat().st_mode & 0o777 == 0o600
    assert keeping.pack(there, with_tpm=True) == files
    assert [one.name for one in keeping.pack(keep, with_tpm=False)] == ["vars.fd"]
    assert keeping.pack(tmp_path / "never", with_tpm=True) == ()
    assert "seeds" not in repr(files)


def test_who_has_the_file_open_sees_what_comes(keep: Path) -> None:
    with (keep / "vars.fd").open("rb") as held:
        keeping.unpack(keep, (Belonging(name="vars.fd", data=b"\x22" * 4096),), None, None)
        assert held.read() == b"\x22" * 4096
    with pytest.raises(DriverError, match="bytes on this node"):
        keeping.unpack(keep, (Belonging(name="vars.fd", data=b"short"),), None, None)


def test_no_name_leads_elsewhere(keep: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(VARIABLES)
    for trap in (lambda path: path.symlink_to(secret), lambda path: os.link(secret, path), os.mkfifo):
        (keep / "vars.fd").unlink()
        trap(keep / "vars.fd")
        with pytest.raises(DriverError):
            keeping.pack(keep, with_tpm=False)
        with pytest.raises(DriverError):
            keeping.unpack(keep, (Belonging(name="vars.fd", data=VARIABLES),), None, None)
    assert secret.read_bytes() == VARIABLES
    for name in ("../secret", "tpm/../../secret", "console.log", ""):
        with pytest.raises(DriverError, match="nothing that belongs"):
            keeping.unpack(keep, (Belonging(name=name, data=b"x"),), None, None)


def test_a_tpm_that_works_is_waited_for_and_not_for_ever(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "TPM_ENDS_WITHIN_S", 0.05)
    lock = keep / "tpm-3" / ".lock"
    lock.touch()
    holds = "import fcntl, sys; lock = open(sys.argv[1], 'r+b'); fcntl.lockf(lock, fcntl.LOCK_EX)"
    holds += "; print('!', flush=True); input()"
    argv = [sys.executable, "-c", holds, str(lock)]  # locks are of processes
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as chip:
        assert chip.stdin is not None
        assert chip.stdout is not None
        assert chip.stdout.readline()
        with pytest.raises(DriverError, match="still works"):
            keeping.pack(keep, with_tpm=True)
        chip.stdin.write(b"\n")
        chip.stdin.close()
    assert len(keeping.pack(keep, with_tpm=True)) == 2


def test_nothing_huge_is_carried(keep: Path) -> None:
    with (keep / "vars.fd").open("r+b") as file:
        file.truncate(keeping.MAX_FILE_BYTES + 1)
    with pytest.raises(Unsupported) as refused:
        keeping.pack(keep, with_tpm=False)
    assert refused.value.reasons[0].remedy
