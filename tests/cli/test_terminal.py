"""On a terminal: coloured tables, live progress, questions; run on a pseudo-terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.control_room import COMPLETED, MIGRATION_ID, ControlRoom, migration, said, vm

PATIENCE_S = 20.0
Typed = Callable[[str], str]
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def terminal(room: ControlRoom, environment: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Runs a command line on a terminal of 100 columns; answers what is asked; the exit code and all that was shown."""

    def run(line: str, answer: str = "") -> tuple[int, str]:
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "novacron.cli.main", *line.split()],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
            close_fds=True,
        )
        os.close(slave)
        shown, end = b"", time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < end:
                ready, _, _ = select.select([master], [], [], 0.1)
                if ready:
                    try:
                        piece = os.read(master, 65536)
                    except OSError:  # the other end is closed: the command has ended
                        break
                    shown += piece
                    if answer and b"[y/N]" in shown:
                        os.write(master, answer.encode())
                        answer = ""
            return child.wait(PATIENCE_S), shown.decode()
        finally:
            child.kill()
            child.wait()
            os.close(master)

    return run


def test_a_table_has_colours_and_no_markup_of_others(
    room: ControlRoom, terminal: Callable[..., tuple[int, str]]
) -> None:
    hostile = vm(state="error") | {"name": "[red]\x1b[2J:smile:", "node": "x" * 200}
    room.on("GET", "/vms", said({"items": [vm(), hostile], "next_cursor": None}))
    code, shown = terminal("vm list")
    assert code == 0
    assert "\x1b[32mrunning" in shown
    assert "\x1b[31merror" in shown
    assert "\x1b[2J" not in shown
    lines = _SEQUENCE.sub("", shown).splitlines()
    assert lines[0].split() == ["NAME", "STATE", "NODE", "VCPUS", "MEMORY", "AGE"]
    assert "[red]\\x1b[2J:smile:" in lines[2]
    assert "x" * 200 in lines[2]


def test_a_migration_has_a_bar_that_goes(room: ControlRoom, terminal: Callable[..., tuple[int, str]]) -> None:
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration()), said(migration(**COMPLETED, revision=50)))
    code, shown = terminal(f"migration watch {MIGRATION_ID}")
    assert code == 0
    seen = _SEQUENCE.sub("", shown)
    assert "━" in seen
    assert seen.rstrip().splitlines()[-1].startswith("web-1: moved from node-1 to node-2; total 7.0 s")


def test_deleting_asks_and_no_is_no(room: ControlRoom, terminal: Callable[..., tuple[int, str]]) -> None:
    room.on("DELETE", "/vms/web-1", said(vm(state="deleting"), 202))
    code, shown = terminal("vm delete web-1", answer="n\n")
    assert code == 130
    assert "Delete VM web-1 and its disks for good? [y/N]" in shown
    assert room.asked == []
    code, shown = terminal("vm delete web-1", answer="y\n")
    assert (code, len(room.asked)) == (0, 1)


def test_ctrl_c_while_following_is_130(room: ControlRoom, environment: dict[str, str], tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "novacron.cli.main", "events", "--follow"],
        env=environment | {"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + PATIENCE_S
        while not room.subscribed and time.monotonic() < end:
            time.sleep(0.01)
        room.happen("vm.updated", vm())
        assert child.stdout is not None
        assert "vm.updated" in child.stdout.readline()
        child.send_signal(2)
        _, errors = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 130
        assert errors == "interrupted\n"
    finally:
        child.kill()
        child.wait()
