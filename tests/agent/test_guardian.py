"""A guardian and a real child: the kernel ends both at the deadline, whatever stands still, and not before."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import guarding
from novacron.agent.drivers.qemu.guarding import SOCKET, GuardianLine, spawn_guarded
from novacron.agent.drivers.qemu.process import IN_ORDER, Process
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import DriverError

pytestmark = pytest.mark.anyio

KILLED = "it was ended by signal SIGKILL"
WITHIN_S = 20.0
LONG_S = 600.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.asynccontextmanager
async def guarded(directory: Path, *command: str, in_s: float = LONG_S) -> AsyncIterator[tuple[Process, RunDir]]:
    """A child under a guardian, whose timer is set so far from now; neither is left afterwards."""
    run_dir = RunDir(directory)
    with run_dir.listen(SOCKET) as listening, (directory / "words").open("wb") as words:
        process = await spawn_guarded(
            command,
            deadline_s=now_s() + in_s,
            listening=listening,
            directory=directory,
            stderr=words.fileno(),
        )
    try:
        yield process, run_dir
    finally:
        process.kill()
        assert await process.wait(WITHIN_S)


def parent_of(process: Process) -> int:
    fields = Path(f"/proc/{process.identity.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


async def test_both_end_at_the_deadline_though_both_are_stopped(tmp_path: Path) -> None:
    async with guarded(tmp_path, "sleep", "600", in_s=1.0) as (process, run_dir):
        line, deadline_s = GuardianLine(run_dir.connect(SOCKET)), now_s() + 1.5
        assert await line.arm(deadline_s)
        guardian = parent_of(process)
        for pid in (guardian, process.identity.pid):
            os.kill(pid, signal.SIGSTOP)
        assert await process.wait(WITHIN_S)
        assert 0 <= now_s() - deadline_s < 1.0
        assert process.ended.result() == KILLED
        assert not Path(f"/proc/{guardian}").exists()
        line.close()


async def test_what_is_to_be_no_later_gives_no_time(tmp_path: Path) -> None:
    """As an agent says it that has just started: it does not know what the one before it had a right to."""
    async with guarded(tmp_path, "sleep", "600") as (process, run_dir):
        line, deadline_s = GuardianLine(run_dir.connect(SOCKET)), now_s() + 1.0
        assert await line.arm(deadline_s)
        assert await line.arm(deadline_s + LONG_S, at_most=True)
        assert await process.wait(WITHIN_S)
        assert 0 <= now_s() - deadline_s < 1.0
        line.close()


async def test_a_deadline_can_come_nearer(tmp_path: Path) -> None:
    async with guarded(tmp_path, "sleep", "600") as (process, run_dir):
        line = GuardianLine(run_dir.connect(SOCKET))
        await line.arm(now_s() - 1.0, at_most=True)  # it may be gone before it answers
        assert await process.wait(WITHIN_S)
        assert process.ended.result() == KILLED
        line.close()


async def test_a_newer_agent_takes_its_place(tmp_path: Path) -> None:
    async with guarded(tmp_path, "sleep", "600") as (process, run_dir):
        old = GuardianLine(run_dir.connect(SOCKET))
        assert await old.arm(now_s() + LONG_S)
        new = GuardianLine(run_dir.connect(SOCKET))
        assert await new.arm(now_s() + LONG_S)
        assert not await old.arm(now_s())
        assert process.alive
        for line in (old, new):
            line.close()


async def test_without_its_guardian_it_ends_at_once(tmp_path: Path) -> None:
    async with guarded(tmp_path, "sleep", "600") as (process, _):
        guardian = parent_of(process)
        os.kill(guardian, signal.SIGTERM)  # meant for the machine, or for nobody
        assert process.alive
        os.kill(guardian, signal.SIGKILL)
        assert await process.wait(WITHIN_S)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("true",), IN_ORDER),
        (("sh", "-c", "exit 3"), "it exited with status 3"),
        (("sh", "-c", "kill -SEGV $$"), "it was ended by signal SIGSEGV"),
    ],
)
async def test_how_it_ended_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: str, *, late: bool
) -> None:
    """Also by one that was gone before its name was heard."""

    async def when_all_is_over(hears: int, guardian: int, guardian_pidfd: int) -> Process:
        select.select([guardian_pidfd], [], [])
        return await told(hears, guardian, guardian_pidfd)

    told = guarding._told
    if late:
        monkeypatch.setattr(guarding, "_told", when_all_is_over)
    async with guarded(tmp_path, *command) as (process, _):
        assert await process.wait(WITHIN_S)
        assert process.ended.result() == words


async def test_whoever_has_its_pid_by_now_is_not_taken_for_it(tmp_path: Path) -> None:
    async with guarded(tmp_path, "sleep", "600") as (process, _):
        mine = guarding._one_of(parent_of(process), process.identity.pid)
        assert mine is not None
        os.close(mine)
        assert guarding._one_of(os.getpid(), process.identity.pid) is None


async def test_a_deadline_that_has_passed_begins_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(DriverError):
        async with guarded(tmp_path, "touch", str(tmp_path / "ran"), in_s=-1.0):
            pass
    assert not (tmp_path / "ran").exists()
