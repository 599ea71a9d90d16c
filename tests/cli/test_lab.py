"""`novacron lab` as words: what is read, what is refused before anything is asked, and that its help loads little."""

from __future__ import annotations

import pytest

from novacron.lab.commands import read_share
from novacron.lab.lab import usual_path
from novacron.lab.orders import is_up
from tests.cli.conftest import Run
from tests.cli.test_start_up import HEAVY, loaded_by


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("5", 0.05), ("100%", 1), ("0", 0), (" 2.5 % ", 0.025)])
def test_shares(text: str, share: float) -> None:
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "101%", "-1%", "1e2", "half", "nan", "٥"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="percent"):
        read_share(text)


@pytest.mark.parametrize(
    "line",
    [
        "lab link node-1",
        "lab link node-1:node-2 --latency 5ms",
        "lab link node-1:node-2 --unplug",
        "lab link node-1 --loss 200%",
        "lab up --nodes 0",
        "lab status --name ../etc",
        "lab down --name .",
    ],
)
def test_wrong_usage(run: Run, line: str) -> None:
    assert run(line).exit_code == 2


def test_a_lab_that_is_not_there(run: Run) -> None:
    assert not usual_path("of-no-such-name").exists()
    done = run("lab status --name of-no-such-name")
    assert done.exit_code == 1
    assert "novacron lab list" in done.stderr
    assert run("lab down --name of-no-such-name").exit_code == 0
    assert not is_up(usual_path("of-no-such-name"))


@pytest.mark.parametrize("line", ["lab --help", "lab up --help", "lab link --help"])
def test_help_loads_next_to_nothing(line: str) -> None:
    assert loaded_by(line.split()).isdisjoint([*HEAVY, "pyroute2"])
