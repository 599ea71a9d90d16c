"""`novacron lab`: a lab that stays, answers, and is put away whole, whatever was killed before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.system import networks
from tests.system.test_demo import NOBODY, as_nobody, check_nobody_in, check_nothing_left, working_in

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here"),
]
missing = [tool for tool in ("openssl", "nft", "cc") if shutil.which(tool) is None]


def needs_root(test: F) -> F:
    """As root each node is a host of its own."""
    skipped = pytest.mark.skipif(os.geteuid() != 0 or bool(missing), reason=f"needs root and {missing or 'nothing'}")
    return pytest.mark.root(skipped(test))


F = TypeVar("F", bound=Callable[..., Any])
NAME = f"t{os.getpid()}"
PATH = Path("/run") / f"novacron-{NAME}"
NOVACRON = [sys.executable, "-m", "novacron.cli.main"]
DEADLINE_S = 120


def words(line: str) -> list[str]:
    verb, *rest = line.split()
    return [*NOVACRON, "lab", verb, "--name", NAME, *rest]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with a home of its own; the lab is put away afterwards."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NOVACRON_", "XDG_"))}
    environment["HOME"] = str(tmp_path)
    yield environment
    subprocess.run(words("down"), env=environment, check=False, capture_output=True, timeout=DEADLINE_S)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(home: dict[str, str]) -> Run:
    """Runs `novacron lab …` for this test's lab and returns what it printed."""

    def runner(line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words(line), env=home, check=False, capture_output=True, text=True, timeout=DEADLINE_S, cwd="/"
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return runner


def status(run: Run) -> Any:
    return json.loads(run("status -o json").stdout)


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def novacron(home: dict[str, str], *line: str) -> str:
    done = subprocess.run(
        [*NOVACRON, *line], env=home, check=True, capture_output=True, text=True, timeout=DEADLINE_S, cwd="/"
    )
    return done.stdout


def supervisor() -> int:
    (found,) = [
        pid for pid in working_in(PATH) if b"novacron.lab.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def processes_of_nodes() -> list[int]:
    """Of those: processes that have a PID namespace of their own."""
    own = Path("/proc/self/ns/pid").stat().st_ino
    return [pid for pid in working_in(PATH) if Path(f"/proc/{pid}/ns/pid").stat().st_ino != own]


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in working_in(PATH), "its end")


@needs_root
def test_a_lab_stays_and_answers_and_goes(run: Run, home: dict[str, str]) -> None:
    shown = run("up --nodes 2 --latency 5ms")
    inside = networks.of_processes(working_in(PATH))
    assert len(inside) == 3
    assert f"novacron --context lab-{NAME} vm list" in shown.stdout
    listed = novacron(home, "--context", f"lab-{NAME}", "node", "list", "-o", "name")
    assert sorted(listed.split()) == ["node-1", "node-2"]
    assert f"another lab runs in {PATH}" in run("up", code=1).stderr
    assert [row for row in json.loads(novacron(home, "lab", "list", "-o", "json")) if row[0] == NAME] == [
        [NAME, "up", str(PATH)]
    ]
    run("down")
    check_nothing_left(PATH)
    check_nobody_in(inside)
    assert NAME not in (Path(home["HOME"]) / ".config" / "novacron" / "client.toml").read_text()
    assert "there is no lab" in run("down").stdout


@needs_root
def test_links_and_power_are_changed_while_it_runs(run: Run) -> None:
    run("up --nodes 2 --latency 5ms")
    run("link node-1 --loss 0.1% --rate 1Gbit")
    run("link node-1:node-2 --cut")
    run("link node-2 --unplug")
    seen = status(run)
    one, two = seen["nodes"]
    assert one["link"] == {
        "latency_ms": 5, "jitter_ms": 0, "loss": 0.001, "rate_bit_per_s": 10**9, "cut": False, "unplugged": False,
    }  # fmt: skip
    assert two["link"]["unplugged"]
    assert seen["parted"] == [["node-1", "node-2"]]
    run("kill node-1")
    assert [node["power"] for node in status(run)["nodes"]] == [False, True]
    assert "no power" in run("exec node-1 -- true", code=1).stderr
    run("restart node-1")
    run("kill node-2 --agent")
    assert [(node["power"], node["agent"]) for node in status(run)["nodes"]] == [(True, True), (True, False)]
    run("kill server")
    assert "restart server" in run("status").stdout
    run("restart server")
    assert status(run)["serving"]
    assert "there is no node nobody" in run("kill nobody", code=1).stderr
    assert "jitter" in run("link node-1 --jitter 1s", code=1).stderr
    run("link node-1:node-2 --latency 5ms", code=2)
    run("link node-1", code=2)


@needs_root
def test_a_command_runs_as_a_process_of_its_node(run: Run) -> None:
    run("up --nodes 1")
    assert run("exec node-1 -- hostname").stdout == "node-1\n"
    assert "novacron.agent" in run("exec node-1 -- ps ax").stdout
    assert "10.77.0.11" in run("exec node-1 -- ip -br address").stdout
    assert "10.77.0.1/24" in run("exec fabric -- ip -br address").stdout
    run("exec node-1 -- false", code=1)
    run("exec node-1 -- nothing-of-that-name", code=1)
    run("exec node-7 -- true", code=1)


@needs_root
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_whatever_became_of_its_supervisor_nothing_is_left(run: Run, how: signal.Signals) -> None:
    run("up --nodes 2 --latency 1ms")
    inside = networks.of_processes(working_in(PATH))
    pid = supervisor()
    os.kill(pid, how)
    if how is signal.SIGKILL:
        until(lambda: not processes_of_nodes(), "the end of the nodes")  # by themselves, with who owns them
        run("status", code=1)
        assert list(PATH.glob("server.sock")) == [PATH / "server.sock"]
    if how is signal.SIGTERM:
        until(lambda: not PATH.exists(), "the end of the lab")
    run("down")
    check_nothing_left(PATH)
    check_nobody_in(inside)


@needs_root
def test_what_a_killed_supervisor_left_is_ended_by_the_next_lab(run: Run) -> None:
    run("up --nodes 1")
    killed(supervisor())
    assert working_in(PATH)  # the server
    assert "that was cut off" in run("up --nodes 1").stderr
    assert len(status(run)["nodes"]) == 1


@needs_root
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_it_starts_nothing_is_left(run: Run, home: dict[str, str], how: signal.Signals) -> None:
    starting = subprocess.Popen(
        words("up --nodes 2"), env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    with starting:
        assert starting.stderr
        assert "control plane is ready" in starting.stderr.readline()
        starting.send_signal(how)
        starting.communicate(timeout=DEADLINE_S)
    if how is signal.SIGINT:
        assert starting.returncode == 130
    else:  # its supervisor does not mind
        until(lambda: (PATH / "control.sock").exists(), "the lab's desk")
        run("down")
    check_nothing_left(PATH)


@needs_root
def test_a_name_that_is_none_is_refused(run: Run, home: dict[str, str]) -> None:
    done = subprocess.run([*NOVACRON, "lab", "up", "--name", "../x"], env=home, capture_output=True, check=False)
    assert done.returncode == 2


def test_without_root_there_is_a_lab_without_links(home: dict[str, str], tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("no setpriv to give root away")
    there = Path("/tmp") / f"nc-{os.getpid()}"
    there.mkdir(mode=0o700)
    environment = home | {"XDG_RUNTIME_DIR": str(there), "HOME": str(there)}
    as_user: Callable[[list[str]], list[str]] = list
    if os.geteuid() == 0:
        os.chown(there, NOBODY, NOBODY)
        as_user = as_nobody

    def do(line: str, code: int = 0) -> str:
        done = subprocess.run(
            as_user(words(line)), env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        assert "without root" in do("up --nodes 2")
        assert "without root" in do("link node-1 --cut", code=1)
        assert "without root" in do("kill node-1", code=1)
        do("up --latency 5ms", code=2)
        assert [node["agent"] for node in json.loads(do("status -o json"))["nodes"]] == [True, True]
    finally:
        do("down")
        left = list(there.glob("novacron-*"))
        shutil.rmtree(there)
    assert left == []
    until(lambda: working_in(there) == [], "the end of its last process")
