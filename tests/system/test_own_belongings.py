"""UEFI variables and a TPM's state go from one node's own pool to another's, in every way to move, through the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from novacron.agent.drivers.qemu import tpm
from novacron.agent.drivers.qemu.firmware import find_uefi
from novacron.client import images, migrations, vms
from novacron.client.goals import vm_settles
from novacron.client.vms import Vm
from novacron.model.image import FileRole
from tests.system.disk_site import END_S, MIB, Site, a_site, needs_nodes
from tests.system.spine import ticks_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    *needs_nodes,
    pytest.mark.skipif(not tpm.is_installed(), reason="swtpm is not installed"),
    pytest.mark.skipif(find_uefi() is None, reason="OVMF is not installed"),
]
MARK = b"this was written on the first node"
COUNTERS_BYTES = 32


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


def kept(site: Site, vm: Vm) -> list[Path]:
    """Every directory beside volumes that the machine has, on any node."""
    return sorted(path for path in site.root.rglob(f"machines/{vm.id}") if "pool" in path.parent.parent.name)


def variables(site: Site, vm: Vm) -> bytes:
    (keep,) = kept(site, vm)
    return (keep / "vars.fd").read_bytes()


def chip(site: Site, vm: Vm) -> bytes:
    """Its TPM's state that counts."""
    (keep,) = kept(site, vm)
    return (keep / tpm.current(keep) / "tpm2-00.permall").read_bytes()


def is_same_chip(one: bytes, other: bytes) -> bool:
    """A start changes a counter or two; two TPMs differ in hundreds of bytes, their seeds."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) < COUNTERS_BYTES


async def until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(END_S):
        while not holds():
            await asyncio.sleep(0.02)
    assert holds(), what


async def running(site: Site, vm: Vm) -> None:
    await site.do(vms.start(vm.id))
    await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)


async def a_uefi_machine(site: Site) -> Vm:
    """Stopped on node-1, once its firmware has written its variables, which then hold a mark."""
    blank = site.root / "blank.raw"
    blank.write_bytes(bytes(MIB))
    await site.do(images.create(images.ImageCreate(name="blank")))
    await site.lab.client.upload("blank", FileRole.DISK, blank)
    await site.do(images.seal("blank"))
    wish = vms.VmCreate(
        name="one", image="blank", memory_mib=256, root_pool="local", nics=[], node="node-1", firmware="uefi", tpm=True
    )
    made = await site.do(vms.create(wish))
    vm = await site.lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
    template = find_uefi()
    assert template is not None
    await until(lambda: variables(site, vm) != template.variables.read_bytes(), "the firmware writes")
    await site.stopped(vm)
    (keep,) = kept(site, vm)
    with (keep / "vars.fd").open("r+b") as file:
        file.seek(-len(MARK), 2)
        file.write(MARK)
    return vm


def on(node: str, **more: Any) -> migrations.MigrationCreate:
    return migrations.MigrationCreate(vm="one", target_node=node, **more)


async def test_variables_and_tpm_go_at_rest_while_it_runs_and_while_it_is_paused(site: Site) -> None:
    vm = await a_uefi_machine(site)
    at_first = variables(site, vm), chip(site, vm)
    plan = await site.do(migrations.plan(on("node-2")))
    (there,) = [node for node in plan.nodes if node.can]
    assert there.belongings
    assert any("default pool" in line for line in there.explanation)

    rest = await site.moved(on("node-2"))
    assert (rest.at_rest, rest.belongings) == (True, True)
    assert "copy_belongings" in rest.steps_done
    assert (variables(site, vm), chip(site, vm)) == at_first  # and nothing is left at the source
    assert "node-2" in str(kept(site, vm)[0])

    await running(site, vm)
    live = await site.moved(on("node-1"))
    assert live.belongings
    assert "copy_belongings" not in live.steps_done
    assert "node-1" in str(kept(site, vm)[0])
    assert variables(site, vm).endswith(MARK)
    assert is_same_chip(at_first[1], chip(site, vm))

    await site.do(vms.pause("one"))
    await site.lab.client.wait_vm(vm.id, vm_settles("paused"), deadline_s=END_S)
    paused = await site.moved(on("node-2"))
    assert paused.paused
    assert (paused.figures.downtime_qemu_ms, paused.figures.downtime_stopped_ms) == (None, None)
    assert (await site.do(vms.get("one"))).state == "paused"
    assert variables(site, vm).endswith(MARK)  # though it never ran there
    assert is_same_chip(at_first[1], chip(site, vm))
    await site.stopped(vm)
    await running(site, vm)
    assert variables(site, vm).endswith(MARK)
    assert is_same_chip(at_first[1], chip(site, vm))


async def test_a_tpm_goes_with_a_guest_that_is_shut_down(site: Site) -> None:
    wish = vms.VmCreate(name="one", image="guest", memory_mib=128, root_pool="local", nics=[], node="node-1", tpm=True)
    made = await site.do(vms.create(wish))
    vm = await site.lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
    await ticks_on(site.lab, vm.id)
    before = chip(site, vm)
    cold = await site.moved(on("node-2", kind="cold"))
    assert "copy_belongings" in cold.steps_done
    await ticks_on(site.lab, vm.id)
    assert "node-2" in str(kept(site, vm)[0])
    assert is_same_chip(before, chip(site, vm))


async def test_what_is_there_already_is_not_written_over_and_the_source_keeps_its_own(site: Site) -> None:
    vm = await a_uefi_machine(site)
    before = variables(site, vm)
    (keep,) = kept(site, vm)
    twin = Path(str(keep).replace("node-1", "node-2"))
    twin.mkdir(parents=True)
    (twin / "vars.fd").write_bytes(b"precious")
    begun = await site.do(migrations.create(on("node-2")))
    ended = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert ended.state == "rolled_back"
    assert ended.problem is not None
    assert "on this node already" in ended.problem.message
    assert (twin / "vars.fd").read_bytes() == b"precious"
    assert (keep / "vars.fd").read_bytes() == before
