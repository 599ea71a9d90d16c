"""Copies of disks kept after a compare that found a difference: seen and deleted through the API, on real machines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from novacron.client import images, migrations, vms
from novacron.client.goals import vm_settles
from novacron.client.migrations import Migration
from novacron.client.vms import Vm
from novacron.errors import StateConflict
from tests.system.disk_site import END_S, MIB, Site, a_site, needs_nodes
from tests.system.spine import ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_nodes]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


async def spoil_image(site: Site) -> None:
    """What node-2 holds of the image is another: so are the disks there that begin with it."""
    wish = vms.VmCreate(name="other", image="guest", memory_mib=32, root_pool="local", nics=[], node="node-2")
    await site.lab.client.wait_vm((await site.do(vms.create(wish))).id, vm_settles("running"), deadline_s=END_S)
    (digest,) = [one.digest for one in (await site.do(images.get("guest"))).files if one.role == "disk"]
    found = [path for path in site.root.rglob(f"*{digest}*") if "node-2" in str(path) and path.is_file()]
    assert found
    for path in found:
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(bytes(MIB))


async def moved_otherwise(site: Site) -> tuple[Vm, Migration]:
    vm = await site.machine("one", disks=2)
    await spoil_image(site)
    wish = migrations.MigrationCreate(vm="one", target_node="node-2", verify_disks="full")
    return vm, await site.moved(wish)


async def test_they_are_told_and_deleted_where_they_lie(site: Site) -> None:
    vm, moved = await moved_otherwise(site)
    assert moved.verdict is not None
    (disks,) = [check for check in moved.verdict.checks if check.name == "disks"]
    assert disks.outcome == "failed", disks.evidence
    assert moved.kept_copies is not None
    assert (moved.kept_copies.node, moved.kept_copies.discarded_at) == ("node-1", None)
    assert moved.kept_copies.volume_ids == [disk.volume_id for disk in vm.disks]
    assert f"novacron migration discard-copies {moved.id}" in disks.evidence
    for disk in vm.disks:
        (here,) = [path for path in site.copies(disk.volume_id) if "node-1" in str(path)]
        assert f"/pool/volumes/{here.name}" in disks.evidence
        assert len(site.copies(disk.volume_id)) == 2
    done = await site.do(migrations.discard_copies(moved.id))
    assert done.kept_copies is not None
    assert done.kept_copies.discarded_by
    for disk in vm.disks:
        (path,) = site.copies(disk.volume_id)
        assert "node-2" in str(path)
    await ticks_on(site.lab, vm.id)
    with pytest.raises(StateConflict, match="had them deleted"):
        await site.do(migrations.discard_copies(moved.id))
    await site.moved(migrations.MigrationCreate(vm="one", target_node="node-1"))  # nothing is in its way any more
    await ticks_on(site.lab, vm.id)
