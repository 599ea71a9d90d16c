"""The watchdog's keeper against a device that resets a host for real: here a file made of FUSE, and a pid namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.agent import keeper
from tests.agent import fuse_watchdog
from tests.agent.said import Said

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]

FIT = keeper.CAN_SET_TIMEOUT | keeper.CAN_CLOSE
BEYOND = 12
"""Fed so often, a device of one second has not reset for more than two."""


class Site:
    """A node: a pid namespace, whose end is the end of all that runs on it; and its device."""

    def __init__(self, directory: Path, least_s: int = 1, options: int = FIT) -> None:
        self.run_dir, mounted = directory / "run", directory / "dev"
        for folder in (self.run_dir, mounted):
            folder.mkdir(parents=True)
        self.device_path = mounted / "watchdog"
        self.host = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", "import signal; signal.pause()"]
        )
        self.init = _child_of(self.host.pid)
        self.agents: list[Said] = []
        module = fuse_watchdog.__name__
        self.device = Said(sys.executable, "-m", module, str(mounted), str(self.init), str(least_s), str(options))
        assert self.device.hear() == "ready"

    def agent(self) -> Said:
        """One that runs on the node. The keeper it starts does so, too."""
        command = (sys.executable, "-m", "tests.agent.watchdog_agent", str(self.device_path), str(self.run_dir))
        self.agents.append(Said("nsenter", "--target", str(self.init), "--pid", *command))
        return self.agents[-1]

    @property
    def is_on(self) -> bool:
        return self.host.poll() is None

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self.host.wait(20)
        self.device.close()
        for agent in self.agents:
            agent.close()


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        pass
    return int(found[0])


@contextlib.contextmanager
def a_site(directory: Path, least_s: int = 1, options: int = FIT) -> Iterator[Site]:
    site = Site(directory, least_s, options)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with a_site(tmp_path) as made:
        yield made


def test_a_machine_that_outlives_its_deadline_has_the_host_reset(site: Site) -> None:
    agent = site.agent()
    assert [agent.ask(wish) for wish in ("ready 1", "start", "arm 1.0")] == ["True"] * 3
    assert site.device.until("reset").count("lost") == 0
    assert site.host.wait(20) != 0


def test_before_the_deadline_it_is_fed_though_the_agent_is_gone_and_later_it_is_not(site: Site) -> None:
    agent = site.agent()
    assert [agent.ask(wish) for wish in ("ready 1", "start", "arm 4.0")] == ["True"] * 3
    agent.process.kill()
    assert "reset" not in site.device.until("fed", BEYOND)
    assert site.is_on
    site.device.until("reset")


def test_once_nothing_guarded_lives_a_deadline_that_has_passed_resets_nothing(site: Site) -> None:
    agent = site.agent()
    assert [agent.ask(wish) for wish in ("ready 1", "start", "arm 600", "kill", "arm -1")] == [
        "True", "True", "True", str(-signal.SIGKILL), "True",
    ]  # fmt: skip
    site.device.until("fed")  # what was told before
    assert "reset" not in site.device.until("fed", BEYOND)
    assert site.is_on


def test_a_keeper_that_stands_still_has_the_host_reset(site: Site) -> None:
    agent = site.agent()
    assert agent.ask("ready 1") == "True"
    os.kill(_keeper(site), signal.SIGSTOP)
    site.device.until("reset")


def test_the_next_agent_meets_the_keeper_and_one_that_has_gone_is_followed_in_time(site: Site) -> None:
    first = site.agent()
    assert [first.ask(wish) for wish in ("ready 1", "start", "arm 600")] == ["True"] * 3
    keeper_pid = _keeper(site)
    first.process.kill()
    second = site.agent()
    assert second.ask("ready 1") == "True"
    assert _keeper(site) == keeper_pid
    os.kill(keeper_pid, signal.SIGKILL)
    site.device.until("lost")
    assert second.ask("arm 600") == "True"
    assert "reset" not in site.device.until("fed", BEYOND)
    assert _keeper(site) != keeper_pid


def test_it_is_closed_in_order_only_when_nothing_guarded_lives(site: Site) -> None:
    agent = site.agent()
    assert [agent.ask(wish) for wish in ("ready 1", "start", "arm 600", "end")] == ["True", "True", "True", "True"]
    assert "closed" not in site.device.until("fed", BEYOND)
    agent.ask("kill")
    assert "lost" not in site.device.until("closed")
    assert site.is_on


def test_a_device_that_cannot_reset_in_time_is_refused_and_closed(tmp_path: Path) -> None:
    with a_site(tmp_path, least_s=30) as site:
        answer = site.agent().ask("ready 1")
        assert "resets after 30 s at the least, which is later than 1 s" in answer
        assert "reset" not in site.device.until("closed")


def test_one_that_is_refused_and_cannot_be_closed_is_fed_for_ever(tmp_path: Path) -> None:
    with a_site(tmp_path, options=keeper.CAN_CLOSE) as site:
        assert "timeout that cannot be set" in site.agent().ask("ready 1")
        site.device.until("closed")
    with a_site(tmp_path / "other", least_s=2, options=keeper.CAN_SET_TIMEOUT) as site:
        assert "resets after 2 s at the least" in site.agent().ask("ready 1")
        assert set(site.device.until("fed", 15)) <= {"opened", "fed"}
        assert site.is_on


def test_one_that_is_refused_later_resets_by_no_deadline(tmp_path: Path) -> None:
    """As when a server names shorter times: from there on nobody tells its keeper of deadlines."""
    with a_site(tmp_path, least_s=2) as site:
        agent = site.agent()
        assert [agent.ask(wish) for wish in ("ready 2", "start", "arm 1.0")] == ["True"] * 3
        assert "does not reset within 1 s" in agent.ask("ready 1")
        assert set(site.device.until("fed", 3 * BEYOND)) <= {"opened", "fed"}
        assert site.is_on
        agent.ask("kill")
        site.device.until("closed")


def test_what_is_no_watchdog_is_refused(site: Site) -> None:
    plain = site.run_dir / "plain"
    plain.write_bytes(b"")
    agent = Said(sys.executable, "-m", "tests.agent.watchdog_agent", str(plain), str(site.run_dir))
    try:
        assert "cannot be opened as a watchdog" in agent.ask("ready 1")
        assert "so short that no device resets in time" in agent.ask("ready 0")
    finally:
        agent.close()


def _keeper(site: Site) -> int:
    """The pid of the keeper that feeds this node's device."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if str(site.device_path).encode() in words and keeper.__file__.encode() in words:
                return int(entry.name)
    raise AssertionError("no keeper runs")
