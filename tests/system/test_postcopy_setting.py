"""Among test processes: post-copy stays allowed until the last that wants it is done, then all is as it was."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from tests.system import postcopy_setting
from tests.system.postcopy_setting import postcopy_allowed, setting_is_ours


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the kernel's: that one is everybody's."""
    made = tmp_path / "setting"
    made.write_text("0\n")
    monkeypatch.setattr(postcopy_setting, "SETTING", made)
    monkeypatch.setattr(postcopy_setting, "BEFORE", tmp_path / "before")
    return made


def test_the_last_puts_it_back(setting: Path) -> None:
    with contextlib.ExitStack() as second:
        with postcopy_allowed():
            second.enter_context(postcopy_allowed())
        assert setting.read_text() == "1"
    assert setting.read_text() == "0\n"
    assert not postcopy_setting.BEFORE.exists()


def test_what_a_killed_one_left_is_put_right(setting: Path) -> None:
    setting.write_text("1")
    postcopy_setting.BEFORE.write_text("0\n")
    with postcopy_allowed():
        assert setting.read_text() == "1"
    assert setting.read_text() == "0\n"


def test_who_changes_it_waits_for_those_who_want_it_so(setting: Path) -> None:
    seen: list[str] = []

    def change() -> None:
        with setting_is_ours():
            seen.append(setting.read_text())
            setting.write_text("2")

    with postcopy_allowed():
        changing = threading.Thread(target=change)
        changing.start()
        changing.join(0.2)
        assert seen == []
    changing.join(10)
    assert seen == ["0\n"]
    assert setting.read_text() == "0\n"
