"""A network over three real nodes, as a user asks for it: rules that count at once, a move, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from novacron.client import devices, images, migrations, networks, security_groups, vms
from novacron.client.goals import vm_settles
from novacron.errors import Conflict
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.lab.guest.line import GuestLine
from novacron.lab.lab import Lab, open_lab
from novacron.model.image import FileRole

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not all(map(shutil.which, ("nft", "dnsmasq"))), reason="nft or dnsmasq is not installed"),
]

PATIENCE_S = 60.0
TALK = security_groups.Rule(direction="in", protocol="tcp", port_first=7007)


@contextlib.asynccontextmanager
async def three_nodes() -> AsyncIterator[Lab]:
    """A lab with the guest's image, a network and a group that lets its service through."""
    files = await asyncio.to_thread(build)
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)  # machines run as users of their own
        async with _lab(path / "lab", files) as lab:
            yield lab


@contextlib.asynccontextmanager
async def _lab(path: Path, files: GuestFiles) -> AsyncIterator[Lab]:
    async with open_lab(path, nodes=3, bridged=True) as lab:
        do = lab.client.do
        await do(images.create(images.ImageCreate(name="guest", cmdline=files.cmdline)))
        await lab.client.upload("guest", FileRole.KERNEL, files.kernel)
        await lab.client.upload("guest", FileRole.INITRD, files.initrd)
        await do(images.seal("guest"))
        await do(networks.create(networks.NetworkCreate(name="web", ipv4="10.20.0.0/24", mode="nat")))
        await do(security_groups.create(security_groups.SecurityGroupCreate(name="talk", rules=[TALK])))
        yield lab


async def guest(lab: Lab, name: str, node: str, address: str, *groups: str) -> vms.Vm:
    """A guest that gives itself the address it has on the network."""
    nic = devices.NicIn(network="overlay", net="web", addresses=[address], security_groups=groups)
    words = f"novacron.name={name} novacron.ip={address}/24 novacron.gw=10.20.0.1"
    asked = vms.VmCreate(name=name, image="guest", memory_mib=128, node=node, nics=[nic], kernel_cmdline=words)
    made = await lab.client.do(vms.create(asked))
    return await lab.client.wait_vm(made.id, vm_settles("running"))


async def talks(lab: Lab, node: str, vm: vms.Vm) -> str:
    """What the guest calls itself, asked from its own node, where its gateway is."""

    def ask() -> str:
        line = GuestLine.wait(vm.nics[0].addresses[0], deadline_s=PATIENCE_S)
        try:
            return line.status().name
        finally:
            line.close()

    return await asyncio.to_thread(lab.node(node).run, ask)


async def until(so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(so):
        assert time.monotonic() < end, what
        await asyncio.sleep(0.05)


def is_answered(address: str) -> bool:
    try:
        GuestLine(address, timeout_s=0.5).close()
    except (OSError, LabFailed):
        return False
    return True


async def test_a_network_over_three_nodes() -> None:
    async with three_nodes() as lab:
        one = await guest(lab, "one", "node-1", "10.20.0.2", "talk")
        await guest(lab, "two", "node-3", "10.20.0.3")
        assert await talks(lab, "node-1", one) == "one"

        host, address = lab.node("node-1"), one.nics[0].addresses[0]
        await lab.client.do(security_groups.update("talk", security_groups.SecurityGroupUpdate(rules=[])))
        await until(lambda: not host.run(lambda: is_answered(address)), "the rule is gone")
        await lab.client.do(security_groups.update("talk", security_groups.SecurityGroupUpdate(rules=[TALK])))
        await until(lambda: host.run(lambda: is_answered(address)), "the rule is back")

        asked = migrations.MigrationCreate(vm="one", target_node="node-2")
        moved = await lab.client.do(migrations.create(asked))
        ended = await lab.client.wait_migration(moved.id)
        assert ended.state == "completed", ended.problem
        assert ended.figures.network_checked_by == "node-3"  # it alone has a card on it besides the two of the move
        assert ended.figures.network_gap_ms is not None, ended.explanation
        assert ended.verdict is not None
        heard = {check.name: check for check in ended.verdict.checks}["network"]
        assert (heard.outcome, "it answered node-3" in heard.evidence) == ("passed", True)
        assert await talks(lab, "node-2", one) == "one"

        with pytest.raises(Conflict, match="one, two"):
            await lab.client.do(networks.delete("web"))
        for name in ("one", "two"):
            await lab.client.do(vms.delete(name, force=True))
            await lab.client.wait_vm_gone(name)
        await lab.client.do(networks.delete("web"))
        for node in lab.hosts:
            await until(
                lambda node=node: not any(name.startswith("nc") for _, name in node.run(socket.if_nameindex)),  # type: ignore[misc]
                f"{node.name} has forgotten it",
            )
