"""Real nodes that fail: what is guarded ends there, its guest answers elsewhere, and at no moment two of it run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import fencing, nodes, vms
from novacron.client.ha import Ha
from novacron.lab.lab import Lab
from tests.control.bmc import PASSWORD, USER, bmc
from tests.system.spine import END_S, a_lab, a_vm, its_node_answers, living_copies, needs_guest, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.alone, pytest.mark.root, *needs_guest]

SURE = Ha(policy="restart", min_fence_class="bmc")
TIMED = Ha(policy="restart", min_fence_class="timer")
HEARTBEAT_S = 0.4
"""A fifth of the usual, and with it every other time."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with a_lab(bridged=True, over_fabric=True, heartbeat_s=HEARTBEAT_S) as made:
        yield made


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[vms.Vm]:
    async with a_vm(lab, ha=TIMED) as made:
        yield made


class Observer:
    """Looks from outside, all the time: how many living processes of a VM there are."""

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self.seen: list[tuple[int, ...]] = []

    async def watch(self) -> None:
        while True:
            pids = tuple(sorted(pid for pid in living_copies(self._vm_id) if not is_dead(pid)))
            if not self.seen or self.seen[-1] != pids:
                self.seen.append(pids)
            await asyncio.sleep(0.01)

    async def sees(self, pid: int) -> None:
        """Return when that one alone lives."""
        async with asyncio.timeout(END_S):
            while self.seen[-1:] != [(pid,)]:
                await asyncio.sleep(0.01)


def host_pid(lab: Lab, vm: vms.Vm) -> int:
    """What this machine calls the process of a running VM."""
    assert vm.node is not None
    assert vm.pid is not None
    return lab.node(vm.node).host_pid(vm.pid)


def is_dead(pid: int) -> bool:
    """Whether it is a zombie: dead, and not yet waited for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@contextlib.asynccontextmanager
async def observed(vm_id: str) -> AsyncIterator[Observer]:
    """Never two, while the block runs."""
    observer = Observer(vm_id)
    watching = asyncio.create_task(observer.watch())
    try:
        yield observer
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert all(len(pids) <= 1 for pids in observer.seen), observer.seen


async def in_state(lab: Lab, name: str, state: str) -> nodes.Node:
    async with asyncio.timeout(END_S):
        while (node := await lab.client.do(nodes.get(name))).state != state:
            await asyncio.sleep(0.05)
    return node


async def moved_from(lab: Lab, before: vms.Vm) -> vms.Vm:
    async with asyncio.timeout(END_S):
        while (now := await lab.client.do(vms.get(before.id))).node_id == before.node_id or now.state != "running":
            await asyncio.sleep(0.05)
    return now


async def test_an_agent_that_starts_anew_finds_its_guardians_again() -> None:
    """At the usual times: to start takes an agent longer than it may be away at a fifth of them."""
    async with a_lab() as lab, a_vm(lab, ha=TIMED) as vm:
        assert vm.node is not None
        assert vm.pid is not None
        async with observed(vm.id) as seen:
            await seen.sees(vm.pid)
            for _ in range(3):
                epoch = (await lab.client.do(nodes.get(vm.node))).epoch
                lab.children[vm.node].kill()
                lab.children[vm.node].start_again()
                await its_node_answers(lab, vm.id)
                await ticks_on(lab, vm.id)
                async with asyncio.timeout(END_S):
                    while (node := await lab.client.do(nodes.get(vm.node))).epoch == epoch:
                        await asyncio.sleep(0.05)
                assert node.fence_class == "timer"
            assert seen.seen == [(vm.pid,)]


async def test_a_vm_of_a_node_without_power_runs_elsewhere(lab: Lab, vm: vms.Vm) -> None:
    assert vm.node is not None
    before = host_pid(lab, vm)
    async with observed(vm.id) as seen:
        await seen.sees(before)
        await asyncio.to_thread(lab.node(vm.node).power_off)
        after = await moved_from(lab, vm)
        await ticks_on(lab, vm.id)
        await seen.sees(host_pid(lab, after))
        assert "no heartbeat" in (await in_state(lab, vm.node, "fenced")).state_reason
        await asyncio.to_thread(lab.node(vm.node).power_on)
        await in_state(lab, vm.node, "up")
        await ticks_on(lab, vm.id)


async def test_a_vm_of_a_node_that_was_cut_off_runs_elsewhere(lab: Lab, vm: vms.Vm) -> None:
    assert vm.node is not None
    before = host_pid(lab, vm)
    async with observed(vm.id) as seen:
        await seen.sees(before)
        lab.link(vm.node).cut()
        after = await moved_from(lab, vm)
        await ticks_on(lab, vm.id)
        await seen.sees(host_pid(lab, after))
        lab.link(vm.node).mend()
        await in_state(lab, vm.node, "up")
        await ticks_on(lab, vm.id)


async def test_a_vm_that_no_deadline_ends_runs_elsewhere_once_its_nodes_power_reads_off(
    lab: Lab, tmp_path: Path
) -> None:
    async with a_vm(lab, ha=SURE) as vm:
        assert vm.node is not None
        before = host_pid(lab, vm)
        with bmc(tmp_path) as there:
            there.cuts = lab.node(vm.node).power_off
            wish = fencing.FenceDeviceSet(
                kind="redfish",
                address=there.address,
                user=USER,
                password=PASSWORD,
                fingerprint=there.fingerprint,
            )
            await lab.client.do(fencing.set_device(vm.node, wish))
            assert (await lab.client.do(fencing.power(vm.node))).power == "on"
            async with observed(vm.id) as seen:
                await seen.sees(before)
                lab.link(vm.node).cut()
                after = await moved_from(lab, vm)
                await ticks_on(lab, vm.id)
                await seen.sees(host_pid(lab, after))
            assert there.asked == ["ForceOff"]
            assert "seen to be off" in (await in_state(lab, vm.node, "fenced")).state_reason
        await lab.client.do(fencing.remove_device(vm.node))
        lab.link(vm.node).mend()
        await asyncio.to_thread(lab.node(vm.node).power_on)
        await in_state(lab, vm.node, "up")
        await ticks_on(lab, vm.id)


async def test_a_frozen_agents_machine_is_ended_by_the_kernel_before_it_runs_elsewhere(lab: Lab, vm: vms.Vm) -> None:
    assert vm.node is not None
    agent, before = lab.children[vm.node].process.pid, host_pid(lab, vm)
    async with observed(vm.id) as seen:
        await seen.sees(before)
        os.kill(agent, signal.SIGSTOP)
        try:
            after = await moved_from(lab, vm)
            await ticks_on(lab, vm.id)
        finally:
            os.kill(agent, signal.SIGCONT)
        await seen.sees(host_pid(lab, after))
        assert () in seen.seen
        await in_state(lab, vm.node, "up")
        await ticks_on(lab, vm.id)
