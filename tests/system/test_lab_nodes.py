"""A lab's nodes are hosts of their own: an agent dies and its machines live; a power cut ends all; a link carries."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from novacron.client import nodes, vms
from novacron.client.goals import vm_settles
from novacron.lab.failure import LabFailed
from novacron.lab.lab import Lab, open_lab
from novacron.lab.network import node_address
from novacron.lab.rom import rom
from tests.system.rom_image import an_image
from tests.system.spine import END_S, a_vm, its_node_answers, needs_guest, ticks_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    *needs_guest,
]
needs_tls = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts whose agents dial over their links, and the image `ticker`."""
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", bridged=True, over_fabric=True) as made:
            guest = rom(path / "cache", pages_per_tick=2, wss_pages=2048)
            await an_image(made.client, "ticker", guest)
            yield made


async def heard(lab: Lab, name: str, fits: Callable[[nodes.Node], bool]) -> nodes.Node:
    """The node, once it is so."""
    async with asyncio.timeout(END_S):
        while not fits(seen := await lab.client.do(nodes.get(name))):
            await asyncio.sleep(0.05)
    return seen


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@needs_tls
async def test_each_node_sees_a_host_of_its_own(lab: Lab) -> None:
    boots = set()
    for number, name in enumerate(lab.nodes, start=1):
        seen = await lab.client.do(nodes.get(name))
        assert seen.facts is not None
        assert seen.facts.hostname == name
        assert seen.facts.migration_address == node_address(number)
        boots.add(lab.node(name).run(lambda: Path("/proc/sys/kernel/random/boot_id").read_text()))
        told = lab.node(name).run(lambda: subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True))
        assert "novacron.agent" in told.stdout
        assert "novacron.control" not in told.stdout
        assert told.stdout.count("novacron.agent") == 1
    assert len(boots | {Path("/proc/sys/kernel/random/boot_id").read_text()}) == 3


@needs_tls
async def test_a_machine_outlives_its_agent_and_is_adopted_by_the_next(lab: Lab) -> None:
    async with a_vm(lab) as vm:
        assert vm.node
        assert vm.pid
        agent, qemu = lab.children[vm.node], lab.node(vm.node).host_pid(vm.pid)
        assert vm.pid != qemu
        agent.kill()
        assert not is_gone(qemu)
        agent.start_again()
        await heard(lab, vm.node, lambda node: node.state == "up" and (node.heard_ago_s or 99) < 2)
        again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
        assert again.pid == vm.pid
        assert lab.node(vm.node).host_pid(vm.pid) == qemu
        await its_node_answers(lab, vm.id)
        await ticks_on(lab, vm.id)


@needs_tls
async def test_a_power_cut_ends_all_on_the_node_and_it_says_so_when_it_is_back(lab: Lab) -> None:
    async with a_vm(lab) as vm:
        assert vm.node
        assert vm.pid
        host = lab.node(vm.node)
        qemu, boot = host.host_pid(vm.pid), host.run(lambda: Path("/proc/sys/kernel/random/boot_id").read_text())
        host.power_off()
        assert is_gone(qemu)
        assert not host.is_on
        with pytest.raises(LabFailed, match="is off"):
            host.run(os.getpid)
        host.power_on()
        assert host.run(lambda: Path("/proc/sys/kernel/random/boot_id").read_text()) != boot
        ill = await lab.client.wait_vm(vm.id, "error", deadline_s=END_S)
        assert ill.problem is not None
        assert "its node was restarted" in ill.problem.message
        await lab.client.do(vms.start(vm.id))
        await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(lab, vm.id)


@needs_tls
@needs_nft
async def test_an_agent_behind_a_cut_link_is_not_heard_and_comes_back_with_it(lab: Lab) -> None:
    async with a_vm(lab) as vm:
        assert vm.node
        other = next(name for name in lab.nodes if name != vm.node)
        lab.link(vm.node).cut()
        await heard(lab, vm.node, lambda node: (node.heard_ago_s or 0) > 4)
        assert ((await lab.client.do(nodes.get(other))).heard_ago_s or 99) < 4
        lab.link(vm.node).mend()
        await heard(lab, vm.node, lambda node: node.state == "up" and (node.heard_ago_s or 99) < 2)
        again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
        assert again.pid == vm.pid
        await ticks_on(lab, vm.id)


@needs_tls
async def test_killing_the_first_process_is_a_power_cut_too(lab: Lab) -> None:
    host = lab.node("node-2")
    assert host.pid
    os.kill(host.pid, 9)
    async with asyncio.timeout(END_S):
        while host.is_on:
            await asyncio.sleep(0.01)
    host.power_on()
    await heard(lab, "node-2", lambda node: node.state == "up" and (node.heard_ago_s or 99) < 2)


async def test_each_node_may_have_a_pool_of_its_own() -> None:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        async with open_lab(Path(folder) / "lab", bridged=True, shared_pool=False) as lab:
            pools = [(await lab.client.do(nodes.get(name))).facts for name in lab.nodes]
            assert len({tuple(facts.pool_ids) for facts in pools if facts}) == 2


async def test_what_is_not_there_is_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        async with open_lab(Path(folder) / "lab", nodes=1, bridged=False) as lab:
            with pytest.raises(LabFailed, match="without root"):
                lab.link("node-1")
