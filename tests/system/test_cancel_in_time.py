"""Whatever a migration does before its commit, it is called off within three seconds, also over a link that is dead."""

from __future__ import annotations

import os
import signal
import time

import msgspec
import pytest

from novacron.client import migrations
from tests.system.disk_site import END_S, Site, a_site, needs_nodes
from tests.system.points import points, thaw
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.spine import needs_guest
from tests.system.strikes import SLOWLY, WAYS, Way, nothing_is_left, settled, under_way
from tests.system.watch import Watch, qemus, watched

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_nodes, *needs_guest]

IN_TIME_S = 3.0
SLOWEST = SLOWLY | {"bandwidth_bytes_per_s": 1 << 20}
REST_MS = 60_000  # QEMU stops the guest while so much is left: more than any buffer holds
SWITCHOVER = "qemu.switchover:before"


async def called_off(site: Site, watch: Watch, vm_id: str, way: Way, at: str, *, dead_link: bool) -> None:
    """Begun, cancelled at that step, and running on where it was."""
    pair = site.lab.between(*site.lab.nodes)
    before = await settled(site, vm_id)
    begun = await site.do(migrations.create(msgspec.structs.replace(way.wish, **SLOWEST)))
    if at != "accept":
        await under_way(site, begun.id, disks=at == "copy_disks")
    if dead_link:
        pair.cut()
    asked_s = time.monotonic()
    await site.do(migrations.cancel(begun.id))
    done = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    took_s = time.monotonic() - asked_s
    pair.mend()
    story = f"at {at}, dead link: {dead_link}: {done.state} after {took_s:.2f} s"
    assert done.state == "cancelled", story
    assert took_s < IN_TIME_S, story
    after = await settled(site, vm_id)
    assert (after.node_id, after.pid) == (before.node_id, before.pid), story
    await watch.more()
    assert watch.wrong == [], story
    await nothing_is_left(site, after)


async def test_while_its_target_hangs_and_it_stands_still_for_the_rest_it_is_called_off_in_time() -> None:
    """Then QEMU may not answer: it sends the rest, with the guest stopped, to somebody who does not read."""
    way = WAYS["live"]
    wish = msgspec.structs.replace(way.wish, **SLOWEST, max_downtime_ms=REST_MS)
    async with points() as armed, a_site(pages=20) as site:
        vm = await site.machine("one", disks=2, pool=way.pool)
        async with watched(site.lab, vm.id) as watch:
            armed.arm(SWITCHOVER, "freeze")
            begun = await site.do(migrations.create(wish))
            source = site.lab.children[str(vm.node)]
            await armed.holds(SWITCHOVER, source)
            os.kill(qemus(site.lab, vm.id)[begun.target_node], signal.SIGSTOP)
            thaw(source)
            asked_s = time.monotonic()
            await site.do(migrations.cancel(begun.id))
            done = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
            took_s = time.monotonic() - asked_s
            assert done.state == "cancelled", done.problem
            assert took_s < IN_TIME_S
            after = await settled(site, vm.id)
            assert (after.node_id, after.pid) == (vm.node_id, vm.pid)
            await watch.more()
            assert watch.wrong == []
            await nothing_is_left(site, after)


@pytest.mark.parametrize("name", WAYS)
async def test_before_the_commit_it_is_called_off_in_time(name: str) -> None:
    way = WAYS[name]
    with postcopy_allowed():
        async with a_site(pages=20) as site:
            vm = await site.machine("one", disks=2, pool=way.pool)
            await site.filled(vm)
            async with watched(site.lab, vm.id) as watch:
                for at in way.steps[: way.steps.index("send") + 1]:
                    for dead_link in (False, True):
                        await called_off(site, watch, vm.id, way, at, dead_link=dead_link)
