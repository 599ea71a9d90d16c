"""The serial log: its tail, and that it takes no more disk than it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent import console
from novacron.agent.drivers.base import CONSOLE_FILE


def test_older_bytes_give_their_disk_back_and_the_writer_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / CONSOLE_FILE
    with log.open("ab", buffering=0) as guest:
        for number in range(80):
            guest.write(b"%06d " % number * (1 << 17 - 3))
        console.trim(tmp_path)
        guest.write(b"the last words")
    assert log.stat().st_blocks * 512 <= console.TRIM_FROM_BYTES
    kept = console.tail(tmp_path, 1 << 20)
    assert kept.truncated
    assert kept.text.endswith("000079 the last words")
    assert kept.text.count("000079") > 1000


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CONSOLE_FILE).write_bytes(b"x" * 1000)
    console.trim(tmp_path)
    assert console.tail(tmp_path, 4096).text == "x" * 1000
    assert not console.tail(tmp_path, 4096).truncated


def test_without_holes_the_log_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CONSOLE_FILE).write_bytes(b"x" * (console.TRIM_FROM_BYTES + 8192))
    monkeypatch.setattr(console, "_punch", lambda handle, length: False)
    console.trim(tmp_path)
    assert (tmp_path / CONSOLE_FILE).stat().st_size == 0


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * (console.TRIM_FROM_BYTES + 8192))
    (tmp_path / CONSOLE_FILE).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        console.trim(tmp_path)
    assert victim.stat().st_blocks * 512 > console.TRIM_FROM_BYTES


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    console.trim(tmp_path)
    assert console.tail(tmp_path, 10).text == ""
