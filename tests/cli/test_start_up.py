"""What is loaded when: help loads next to nothing, calls load no pydantic, and nobody loads the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, said, vm

HEAVY = ["rich", "pydantic", "httpx2", "websockets", "fastapi", "starlette", "msgspec", "yaml", "asyncio"]

REPORT = """
import json, sys
from novacron.cli.main import novacron
sys.argv = ["novacron", *{words!r}]
try:
    novacron(prog_name="novacron")
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps({{"code": code, "loaded": sorted(sys.modules)}}))
"""


def loaded_by(words: list[str], environment: dict[str, str] | None = None) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | (environment or {}),
    )
    said_last = json.loads(done.stdout.splitlines()[-1])
    assert said_last["code"] == 0, done.stderr
    return set(said_last["loaded"])


@pytest.mark.parametrize(
    "line", ["--help", "vm --help", "vm create --help", "migration watch --help", "events --help", "version"]
)
def test_help_loads_next_to_nothing(line: str) -> None:
    assert loaded_by(line.split()).isdisjoint(HEAVY)


def test_a_list_loads_what_it_needs_and_no_more(
    room: ControlRoom, switchboard: tuple[object, str], tmp_path: Path
) -> None:
    room.on("GET", "/vms", said({"items": [vm()], "next_cursor": None}))
    found = loaded_by(
        ["vm", "list"], {"NOVACRON_SERVER": switchboard[1], "NOVACRON_TOKEN": "secret", "HOME": str(tmp_path)}
    )
    assert "httpx2" in found
    assert found.isdisjoint({"rich", "pydantic", "websockets", "fastapi", "starlette", "yaml"})


def test_server_and_agent_become_their_process(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append([path, *words]))
    run("server run --data-dir /d --port 0 --help")
    run("agent run -x")
    run("agent join https://s --node-name n")
    run("agent renew --help")
    run("cluster init /c --host s")
    run("cluster ca-switch /c")
    run("store migrate --from sqlite:a --to sqlite:b")
    run("store backup --help")
    run("store restore f --to sqlite:b")
    assert became == [
        [sys.executable, sys.executable, "-P", "-m", "novacron.control", "--data-dir", "/d", "--port", "0", "--help"],
        [sys.executable, sys.executable, "-P", "-m", "novacron.agent", "-x"],
        *(
            [sys.executable, sys.executable, "-P", "-m", *words.split()]
            for words in (
                "novacron.agent.join join https://s --node-name n",
                "novacron.agent.join renew --help",
                "novacron.control.cluster_admin init /c --host s",
                "novacron.control.cluster_admin ca-switch /c",
            )
        ),
        *(
            [sys.executable, sys.executable, "-P", "-m", "novacron.control.store_admin", *words.split()]
            for words in ("migrate --from sqlite:a --to sqlite:b", "backup --help", "restore f --to sqlite:b")
        ),
    ]


def test_a_file_in_the_working_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "novacron.py").write_text("print('taken over')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "novacron.cli.main", "server", "run", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert "usage: python -m novacron.control" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    done = run(f"completion {shell}")
    assert done.exit_code == 0
    assert "_NOVACRON_COMPLETE" in done.stdout


def test_names_are_completed(room: ControlRoom, switchboard: tuple[object, str], tmp_path: Path) -> None:
    room.on("GET", "/vms", said({"items": [vm(), vm(name="db"), vm() | {"name": "web\x1b[2J"}], "next_cursor": None}))
    environment = os.environ | {
        "_NOVACRON_COMPLETE": "bash_complete",
        "COMP_WORDS": "novacron vm start we",
        "COMP_CWORD": "3",
        "NOVACRON_SERVER": switchboard[1],
        "NOVACRON_TOKEN": "secret",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "novacron.cli.main"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["plain,web-1"]
    assert done.stderr == ""


def test_completion_without_a_server_is_quiet(tmp_path: Path) -> None:
    environment = os.environ | {
        "_NOVACRON_COMPLETE": "bash_complete",
        "COMP_WORDS": "novacron vm start we",
        "COMP_CWORD": "3",
        "NOVACRON_SERVER": f"unix:{tmp_path}/nothing",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "novacron.cli.main"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
