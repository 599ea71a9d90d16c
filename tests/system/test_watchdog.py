"""A node with a watchdog: a machine that nothing else ends at its deadline ends with its host, and runs elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novacron.agent import keeper
from novacron.client import nodes, vms
from novacron.client.ha import Ha
from novacron.lab.lab import Lab
from tests.agent import fuse_watchdog
from tests.agent.said import Said
from tests.system.spine import END_S, a_lab, a_vm, needs_guest, ticks_on
from tests.system.test_high_availability import HEARTBEAT_S, host_pid, in_state, moved_from, observed

FREEZER = Path("/sys/fs/cgroup/freezer")
WATCHED = Ha(policy="restart", min_fence_class="watchdog")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    *needs_guest,
]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with a_lab(bridged=True, over_fabric=True, heartbeat_s=HEARTBEAT_S) as made:
        yield made


@contextlib.asynccontextmanager
async def with_watchdog(lab: Lab, name: str) -> AsyncIterator[Said]:
    """Boot that node again, with a device that resets it and an agent that is told of it; without it afterwards."""
    node, child = lab.node(name), lab.children[name]
    await asyncio.to_thread(node.power_off)
    folder = Path(lab.path / f"{name}-device")
    folder.mkdir()
    options = keeper.CAN_SET_TIMEOUT | keeper.CAN_CLOSE
    device = Said(sys.executable, "-m", fuse_watchdog.__name__, str(folder), "0", "1", str(options))
    try:
        assert device.hear() == "ready"
        more = ["--watchdog", str(folder / "watchdog")]
        child.command += more
        await asyncio.to_thread(node.power_on)
        device.tell(str(node.pid))
        await has_class(lab, name, "watchdog")
        yield device
    finally:
        await asyncio.to_thread(node.power_off)
        device.close()


async def has_class(lab: Lab, name: str, fence_class: str) -> nodes.Node:
    async with asyncio.timeout(END_S):
        while (node := await lab.client.do(nodes.get(name))).fence_class != fence_class or node.state != "up":
            await asyncio.sleep(0.05)
    return node


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[Path]:
    """That process and its parent, its guardian, stand still and cannot be killed, as in an endless wait for a disk."""
    group = FREEZER / f"novacron-test-{secrets.token_hex(4)}"
    group.mkdir()
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    try:
        for one in (pid, parent):
            (group / "cgroup.procs").write_text(str(one))
        (group / "freezer.state").write_text("FROZEN")
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        while (group / "cgroup.procs").read_text().split():
            for left in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (FREEZER / "cgroup.procs").write_text(left)
        group.rmdir()


@pytest.mark.skipif(not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="needs the freezer of cgroup v1")
async def test_a_machine_that_nothing_ends_at_its_deadline_ends_with_its_host_and_runs_elsewhere(lab: Lab) -> None:
    async with with_watchdog(lab, "node-1") as device, a_vm(lab, ha=WATCHED, node="node-1") as vm:
        shown = await lab.client.do(nodes.get("node-1"))
        assert shown.facts is not None
        assert "resets this host when it is not fed in time" in shown.facts.watchdog
        async with observed(vm.id) as seen:
            await seen.sees(host_pid(lab, vm))
            with frozen(host_pid(lab, vm)):
                lab.link("node-1").cut()
                assert "lost" not in await asyncio.to_thread(device.until, "reset")
            after = await moved_from(lab, vm)
            await ticks_on(lab, vm.id)
            await seen.sees(host_pid(lab, after))
        assert "no heartbeat" in (await in_state(lab, "node-1", "fenced")).state_reason
        lab.link("node-1").mend()


async def test_a_node_that_was_cut_off_ends_what_is_guarded_and_is_not_reset(lab: Lab) -> None:
    async with with_watchdog(lab, "node-1") as device, a_vm(lab, ha=WATCHED, node="node-1") as vm:
        before = host_pid(lab, vm)
        async with observed(vm.id) as seen:
            await seen.sees(before)
            lab.link("node-1").cut()
            after = await moved_from(lab, vm)
            await seen.sees(host_pid(lab, after))
        assert lab.node("node-1").is_on
        assert "reset" not in await asyncio.to_thread(device.until, "fed", 10)
        lab.link("node-1").mend()
        await in_state(lab, "node-1", "up")


async def test_what_asks_for_a_watchdog_has_no_deadline_where_there_is_none(lab: Lab) -> None:
    async with a_vm(lab, ha=WATCHED, node="node-2") as vm:
        assert (await lab.client.do(nodes.get("node-2"))).fence_class == "timer"
        lab.link("node-2").cut()
        await in_state(lab, "node-2", "down")
        lab.link("node-2").mend()
        await in_state(lab, "node-2", "up")
        assert (await lab.client.do(vms.get(vm.id))).pid == vm.pid
