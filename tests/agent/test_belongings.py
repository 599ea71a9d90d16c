"""What belongs to a machine and is no volume lies in a directory of its own user, and goes with the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novacron.agent import belongings
from novacron.errors import DriverError
from novacron.model.machine import Firmware, MachineSpec

VM = "018f0000-0000-7000-8000-000000000001"
SPEC = MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64)


def test_it_is_made_once_for_its_user_alone_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "machines"
    uid = 65534 if os.geteuid() == 0 else None
    path = belongings.make(root, VM, uid)
    (path / "vars.fd").touch()
    assert belongings.make(root, VM, uid) == path
    assert path.stat().st_mode & 0o777 == 0o700
    assert uid is None or path.stat().st_uid == uid
    belongings.remove(root, VM)
    belongings.remove(root, VM)
    assert list(root.iterdir()) == []


def test_no_name_leads_elsewhere(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b"):
        with pytest.raises(DriverError):
            belongings.make(tmp_path / "machines", name, None)
        with pytest.raises(DriverError):
            belongings.remove(tmp_path / "machines", name)
    victim = tmp_path / "victim"
    (victim / "kept").mkdir(parents=True)
    (tmp_path / "machines" / VM).symlink_to(victim)
    belongings.remove(tmp_path / "machines", VM)
    assert (victim / "kept").is_dir()


def test_whether_anything_is_there_and_that_it_is_on_the_disk(tmp_path: Path) -> None:
    root = tmp_path / "machines"
    assert not belongings.is_there(root, VM)
    belongings.flush(root, VM)
    path = belongings.make(root, VM, None)
    assert not belongings.is_there(root, VM)
    (path / "vars.fd").write_bytes(b"x")
    (path / "trap").symlink_to("/nowhere")
    (path / "tpm").mkdir()
    os.mkfifo(path / "tpm" / "pipe")
    belongings.flush(root, VM)  # neither waits for anybody nor follows anything
    assert belongings.is_there(root, VM)


def test_only_those_who_need_it_have_one() -> None:
    assert not belongings.needed(SPEC)
    uefi = MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64, firmware=Firmware.UEFI)
    assert belongings.needed(uefi)
    assert belongings.needed(MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64, tpm=True))
