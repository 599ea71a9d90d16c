"""Templates on the command line: a version read from a file, values in the type that is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.client.control_room import NOW, VM_ID, ControlRoom, said, vm

FILE = """\
vm:
  image: debian-12
  memory_mib: "{{param.mib}}"
parameters:
- {name: mib, type: integer, default: 2048}
- {name: domain}
"""


def template(**changes: Any) -> dict[str, Any]:
    version = {
        "number": 1,
        "vm": {"image": "debian-12"},
        "parameters": [{"name": "mib", "type": "integer", "default": 2048}, {"name": "domain", "type": "text"}],
        "note": "first",
        "created_at": NOW,
    }
    data = {
        "id": VM_ID, "name": "web", "description": "", "labels": {}, "default_version": 0, "versions": [version],
        "created_at": NOW, "updated_at": NOW, "revision": 7,
    }  # fmt: skip
    return data | changes


def test_create_sends_the_files_version(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    room.on("POST", "/templates", said(template(), 201))
    (tmp_path / "web.yaml").write_text(FILE)
    assert run(f"template create web --from {tmp_path}/web.yaml --label a=b").stdout == "web: version 1\n"
    assert json.loads(room.bodies[0]) == {
        "name": "web",
        "labels": {"a": "b"},
        "vm": {"image": "debian-12", "memory_mib": "{{param.mib}}"},
        "parameters": [{"name": "mib", "type": "integer", "default": 2048}, {"name": "domain"}],
    }


@pytest.mark.parametrize(
    "text", ["vm: 7", "vm: {}\ntpyo: 1", "a: &a [x]\nvm: {b: *a}", "{", "vm: !!python/object:os.system {}"]
)
def test_what_is_no_version_is_said(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "web.yaml").write_text(text)
    result = run(f"template create web --from {tmp_path}/web.yaml")
    assert (result.exit_code, "--from" in result.stderr) == (2, True)


def test_instantiate_sends_numbers_where_numbers_are_wanted(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/templates/web", said(template()))
    room.on("POST", "/templates/web/instantiate", said({"items": [vm(name="shop-1"), vm(name="shop-2")]}, 202))
    result = run("template instantiate web shop --count 2 -p mib=1024 -p domain=7 -o name")
    assert result.stdout == "shop-1\nshop-2\n"
    assert json.loads(room.bodies[-1]) == {"name": "shop", "count": 2, "parameters": {"mib": 1024, "domain": "7"}}


def test_show_says_what_must_be_given(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/templates/web", said(template()))
    shown = run("template show web").stdout
    assert "mib (integer; else 2048)" in shown
    assert "domain (text; must be given)" in shown
