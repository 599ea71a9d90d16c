"""The LVM driver's commands and what it reads; the contract runs on kernels that have a device-mapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from novacron.agent.storage.lvm import LvmThinPool
from novacron.agent.storage.lvm_tool import FIELDS, Lv, LvmTool, parse
from novacron.agent.storage.tool import Tools
from novacron.errors import DriverError, NotFound, StateConflict
from novacron.model.machine import Disk

pytestmark = pytest.mark.anyio

VOLUME, OTHER = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"
SNAP = "01890a5d-ac96-774b-bcce-b302099a8051"
NAME = f"volume-{VOLUME}"
MIB = 1 << 20

RECORDED = b"""\
  {
      "report": [
          {
              "lv": [
                  {"lv_name":"snap-01890a5d-ac96-774b-bcce-b302099a8057-01890a5d-ac96-774b-bcce-b302099a8051", \
"lv_size":"8388608", "lv_attr":"Vwi-XXtz--", "origin":"volume-01890a5d-ac96-774b-bcce-b302099a8057", \
"data_percent":"", "pool_lv":"tp"},
                  {"lv_name":"tp", "lv_size":"134217728", "lv_attr":"twi---tz--", "origin":"", "data_percent":"", \
"pool_lv":""},
                  {"lv_name":"volume-01890a5d-ac96-774b-bcce-b302099a8057", "lv_size":"8388608", \
"lv_attr":"Vwi-XXtz--", "origin":"", "data_percent":"", "pool_lv":"tp"}
              ]
          }
      ]
  }
"""
"""As lvm2 2.03.16 (Debian 12) wrote it of a volume group with a thin pool, a thin volume and a snapshot of it."""


class Told(Tools):
    """Notes commands; answers `lvs` with the recorded words, or with what the test says there is."""

    def __init__(self, lvs: bytes = RECORDED) -> None:
        super().__init__()
        self.lvs = lvs
        self.said: list[tuple[str, ...]] = []

    async def run(self, program: str, *words: str, **_: Any) -> bytes:
        if program == "lvs":
            assert words == ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS, "vg")
            return self.lvs
        self.said.append((program, *words))
        return b""


def a_pool(told: Told) -> LvmThinPool:
    pool = LvmThinPool("vg", "tp", Tools())
    pool._lvm = LvmTool("vg", "tp", told)
    return pool


def test_what_lvs_says() -> None:
    found = parse(RECORDED)
    assert found["tp"].size_bytes == 128 * MIB
    assert found[NAME] == Lv(NAME, "8388608", "Vwi-XXtz--", pool_lv="tp")
    assert parse(b'{"report":[{"lv":[]}]}') == {}
    assert Lv("a", "1000", "Vwi-aotz--", data_percent="12.50").used_bytes == 125
    assert Lv("a", "1000", "Vwi-aotz--").is_open
    assert not Lv("a", "1000", "Vwi-a-tz--").is_open
    for wrong in (b"", b"{}", b"[]", b'{"report":[{"lv":[{}]}]}'):
        with pytest.raises(DriverError, match="cannot be read"):
            parse(wrong)


async def test_space_and_extents() -> None:
    told = Told(
        RECORDED.replace(
            b'"twi---tz--", "origin":"", "data_percent":""', b'"twi-aotz--", "origin":"", "data_percent":"25.00"'
        )
    )
    space = await a_pool(told).space()
    assert (space.free_bytes, space.size_bytes) == (96 * MIB, 128 * MIB)
    assert (await a_pool(told).extent(VOLUME)).size_bytes == 8 * MIB
    with pytest.raises(NotFound, match="thin pool"):
        await a_pool(Told(RECORDED.replace(b'"tp"', b'"other"'))).space()


async def test_commands_are_lists_of_checked_words() -> None:
    told, made = Told(), ("--thin", "--virtualsize", "8388608b", "--name", "volume-x", "vg/tp")
    tool = LvmTool("vg", "tp", told)
    await tool.create("volume-x", 8 * MIB)
    await tool.share("volume-y", "volume-x")
    await tool.extend("volume-y", 16 * MIB)
    await tool.activate("volume-y")
    assert told.said == [
        ("lvcreate", "--yes", "--wipesignatures", "n", *made),
        ("lvcreate", "--snapshot", "--setactivationskip", "n", "--name", "volume-y", "vg/volume-x"),
        ("lvextend", "--size", "16777216b", "vg/volume-y"),
        ("lvchange", "--activate", "y", "--ignoreactivationskip", "vg/volume-y"),
    ]  # fmt: skip


async def test_a_revert_keeps_the_volume_until_the_snapshots_content_has_its_name() -> None:
    told = Told()
    await a_pool(told).revert_snapshot(VOLUME, SNAP)
    snap = f"snap-{VOLUME}-{SNAP}"
    assert told.said == [
        ("lvcreate", "--snapshot", "--setactivationskip", "n", "--name", f"making-{NAME}", f"vg/{snap}"),
        ("lvrename", "vg", NAME, f"old-{NAME}"),
        ("lvrename", "vg", f"making-{NAME}", NAME),
        ("lvremove", "--yes", f"vg/old-{NAME}"),
    ]


async def test_a_revert_cut_off_is_taken_back() -> None:
    told = Told(RECORDED.replace(f'"lv_name":"{NAME}"'.encode(), f'"lv_name":"old-{NAME}"'.encode()))
    with pytest.raises(NotFound):  # what lvs says does not change here
        await a_pool(told).extent(VOLUME)
    assert told.said == [("lvrename", "vg", f"old-{NAME}", NAME)]


async def test_removing_takes_its_snapshots_along() -> None:
    told = Told()
    await a_pool(told).remove_volume(VOLUME)
    assert [words[-1] for words in told.said] == [f"vg/snap-{VOLUME}-{SNAP}", f"vg/{NAME}"]


async def test_an_open_volume_is_left_alone(tmp_path: Path) -> None:
    told = Told(RECORDED.replace(b'"Vwi-XXtz--", "origin":""', b'"Vwi-aotz--", "origin":""'))
    pool = a_pool(told)
    for work in (
        pool.remove_volume(VOLUME),
        pool.grow_volume(Disk(volume_id=VOLUME, size_bytes=16 * MIB)),
        pool.clone_volume(Disk(volume_id=OTHER, size_bytes=0), VOLUME),
        pool.revert_snapshot(VOLUME, SNAP),
        pool.export_snapshot(VOLUME, "", tmp_path / "out"),
    ):
        with pytest.raises(StateConflict, match="in use"):
            await work
    assert told.said == []
