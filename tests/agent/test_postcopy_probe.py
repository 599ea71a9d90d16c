"""What is remembered of post-copy: nothing that was found while the kernel's setting changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import postcopy_probe
from novacron.agent.drivers.qemu.postcopy_probe import FEATURE, PostcopyProbe
from novacron.clock import SystemClock

pytestmark = pytest.mark.anyio


class Kernel(PostcopyProbe):
    """Lets or refuses by a setting in a file, which becomes `meanwhile` as QEMU is asked: just before it, or after."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "cache", SystemClock())
        self.meanwhile = ""
        self.late = False
        self.tries = 0

    async def lets(self, setting: str) -> bool:
        postcopy_probe.SETTING.write_text(setting)
        return await self.features(Path("qemu"), "key", "tcg") == (FEATURE,)

    async def _try(self, binary: Path, accelerator: str, uid: int | None) -> str:
        self.tries += 1
        at_first = postcopy_probe.SETTING.read_text()
        postcopy_probe.SETTING.write_text(self.meanwhile or at_first)
        self.meanwhile = ""
        return "" if (at_first if self.late else postcopy_probe.SETTING.read_text()) == "1" else "not permitted"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(postcopy_probe, "SETTING", tmp_path / "setting")
    monkeypatch.setattr(postcopy_probe, "DEVICE", tmp_path / "none")
    return Kernel(tmp_path)


async def test_it_is_tried_once_for_each_setting(kernel: Kernel) -> None:
    for setting, tries in (("0", 1), ("0", 1), ("1", 2), ("1", 2), ("0", 3), ("1", 3)):  # what worked is kept
        assert (await kernel.lets(setting), kernel.tries) == (setting == "1", tries)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("before", "after"), [("0", "1"), ("1", "0")])
async def test_what_was_found_while_the_setting_changed_is_not_remembered(
    kernel: Kernel, before: str, after: str, late: bool
) -> None:
    await kernel.lets(after)
    kernel.meanwhile, kernel.late = after, late
    await kernel.lets(before)
    assert await kernel.lets(after) is (after == "1")
    assert await kernel.lets(before) is (before == "1")
