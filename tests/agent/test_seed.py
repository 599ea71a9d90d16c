"""The cloud-init seed, read back as a guest would find it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pycdlib
import pytest

from novacron.agent import seed
from novacron.errors import InvalidInput
from novacron.model.machine import CloudInit

VM = "01890000-0000-7000-8000-000000000001"


def read(image: bytes) -> dict[str, bytes]:
    """Its files by their Joliet names; the Rock Ridge names must be the same."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found: dict[str, bytes] = {}
    for child in iso.list_children(joliet_path="/"):
        name = child.file_identifier().decode("utf-16-be", "replace")
        if child.is_file():
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, joliet_path=f"/{name}")
            found[name] = content.getvalue()
    names = {child.rock_ridge.name().decode() for child in iso.list_children(iso_path="/") if child.is_file()}
    assert names == set(found)
    iso.close()
    return found


def test_a_guest_finds_its_documents_under_the_label_it_looks_for(tmp_path: Path) -> None:
    hostile = "#cloud-config\nx: !!python/object/apply:os.system ['true']\nname: \"a\x01b\"\r\n\té\n"
    path = tmp_path / "seed.iso"
    seed.write(path, VM, CloudInit(user_data=hostile, network_config="version: 2\n"), None)
    image = path.read_bytes()
    assert image[32768 + 40 : 32768 + 72].decode().strip().lower() == "cidata"
    assert read(image) == {
        "user-data": hostile.encode(),  # untouched: the guest parses it, not we
        "meta-data": f"instance-id: {VM}\n".encode(),
        "network-config": b"version: 2\n",
    }


def test_the_instance_is_the_vm_whatever_else_changes() -> None:
    assert b"instance-id: " + VM.encode() in seed.documents(VM, CloudInit())["meta-data"]
    assert seed.documents(VM, CloudInit(meta_data="instance-id: mine\n"))["meta-data"] == b"instance-id: mine\n"
    assert "network-config" not in seed.documents(VM, CloudInit())


@pytest.mark.parametrize("field", ["user_data", "meta_data", "network_config"])
def test_a_document_is_bounded_in_bytes_and_the_message_names_it(field: str) -> None:
    largest = "é" * (seed.MAX_DOCUMENT_BYTES // 2)
    assert read(seed.image(seed.documents(VM, CloudInit(**{field: largest}))))
    for wrong in (largest + "x", "\ud800"):
        with pytest.raises(InvalidInput, match=f"cloud_init.{field}"):
            seed.documents(VM, CloudInit(**{field: wrong}))


def test_what_lies_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    path = tmp_path / "seed.iso"
    path.symlink_to(victim)
    seed.write(path, VM, CloudInit(), None)
    assert victim.read_text() == "kept"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o400


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file away")
def test_it_belongs_to_the_machines_user(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    seed.write(path, VM, CloudInit(), 12345)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)
