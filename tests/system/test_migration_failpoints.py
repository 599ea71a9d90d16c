"""Real migrations struck at every recorded step: whoever dies or stands still there, one copy lives on, none lost.

A failpoint (novacron.failpoint) stops server or agent exactly before or after a step was begun or done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron import failpoint
from novacron.client import migrations
from novacron.lab.lab import Lab
from novacron.lab.processes import until_ready
from tests.system.spine import END_S, a_lab, a_vm, last_tick, living_copies, needs_guest, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_guest]

SOURCE, TARGET, SERVER = "source", "target", "server"
LIVE = {"accept": TARGET, "send": SOURCE, "take_over": TARGET, "verify": TARGET, "release": SOURCE}
COLD = {"accept": TARGET, "halt": SOURCE, "take_over": TARGET, "verify": TARGET, "release": SOURCE}
PARTS = {"live": LIVE, "cold": COLD}
FROZEN_S = 4.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def armed() -> AsyncIterator[Path]:
    """The directory that children look in; what this test armed is there until somebody comes to it."""
    with tempfile.TemporaryDirectory(prefix="nc-points-") as folder:
        os.environ[failpoint.VARIABLE] = folder
        yield Path(folder)
        del os.environ[failpoint.VARIABLE]


async def struck(point: Path) -> None:
    async with asyncio.timeout(END_S):
        while point.exists():
            await asyncio.sleep(0.01)


async def begun(lab: Lab, vm_id: str, kind: str) -> migrations.Migration:
    return await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm_id, kind=kind)))


async def one_copy(lab: Lab, vm_id: str, seen: int, kind: str) -> int:
    """One copy lives where the record says, with all it had; its tick by now."""
    after = await lab.client.wait_vm(vm_id, "running", deadline_s=END_S)
    async with asyncio.timeout(END_S):
        while living_copies(vm_id) != [after.pid]:
            await asyncio.sleep(0.05)
    await ticks_on(lab, vm_id)
    tick, bad = await last_tick(lab, vm_id)
    assert bad == 0
    assert kind == "cold" or tick > seen
    return tick


def points(way: str, side: str) -> list[str]:
    """Where that side comes by on that way."""
    if side == SERVER:
        return [f"conductor.{step}:{when}" for step in PARTS[way] for when in ("began", "did")]
    mine = [step for step, does in PARTS[way].items() if does == side]
    return [f"migration.{step}:{when}" for step in mine for when in ("before", "after")]


@pytest.mark.parametrize("what", ["crash", "freeze"])
@pytest.mark.parametrize("side", [SOURCE, TARGET, SERVER])
@pytest.mark.parametrize("way", PARTS)
async def test_struck_at_every_step_one_copy_lives_on(armed: Path, way: str, side: str, what: str) -> None:
    """All places of a side in one lab: what one strike leaves behind would be met by the next."""
    async with a_lab() as lab, a_vm(lab) as vm:
        seen = 0
        for place in points(way, side):
            now = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
            there = next(name for name in ("node-1", "node-2") if name != now.node)
            child = lab.children[{SOURCE: str(now.node), TARGET: there, SERVER: "server"}[side]]
            (armed / place).write_text(what)
            move = await begun(lab, vm.id, way)
            await struck(armed / place)
            if what == "freeze":
                await asyncio.sleep(FROZEN_S)  # longer than a heartbeat; the time itself is the fault
                child.process.send_signal(signal.SIGCONT)
            else:
                await asyncio.to_thread(child.process.wait)
                child.start_again()
            if side == SERVER:
                await until_ready(child)
            done = await lab.client.wait_migration(move.id, deadline_s=2 * END_S)
            assert done.state in ("completed", "rolled_back"), (place, done.problem)
            after = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
            assert (after.node_id == done.target_node_id) == (done.state == "completed"), place
            seen = await one_copy(lab, vm.id, seen, way)
