"""Real migrations struck at every recorded step: whoever dies or stands still there, one copy lives on, none lost.

A failpoint (novacron.failpoint) stops server or agent exactly before or after a step was begun or done.
"""

from __future__ import annotations

import asyncio

import pytest

from novacron.client import migrations
from novacron.client.vms import Vm
from novacron.lab.processes import until_ready
from tests.system.disk_site import Site, a_site, needs_nodes
from tests.system.points import Points, points, thaw
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.spine import END_S, its_node_answers, needs_guest, ticks_on
from tests.system.strikes import FROZEN_S, WAYS, Way, copy_at, nothing_is_left, settled
from tests.system.watch import Watch, watched

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_nodes, *needs_guest]

SOURCE, TARGET, SERVER = "source", "target", "server"
BY_TARGET = ("accept", "take_over", "verify")
BY_SERVER = ("commit",)
_REBOOTED = ("halt", "commit", "take_over", "verify", "release")
_COLD = migrations.MigrationCreate(vm="one", kind="cold", measure=False)
ALL_WAYS = {
    **WAYS,
    "cold": Way(steps=("accept", *_REBOOTED), wish=_COLD),
    "cold disks": Way(steps=("accept", "copy_disks", *_REBOOTED), wish=_COLD, pool="local"),
}


def places(way: Way, side: str) -> list[str]:
    """Where that side comes by on that way."""
    if side == SERVER:
        return [f"conductor.{step}:{when}" for step in way.steps for when in ("began", "did")]
    mine = [step for step in way.steps if (step in BY_TARGET) == (side == TARGET) and step not in BY_SERVER]
    return [f"migration.{step}:{when}" for step in mine for when in ("before", "after")]


async def struck(site: Site, armed: Points, way: Way, vm: Vm, side: str, what: str, place: str) -> migrations.Migration:
    """A move in which that process dies, or stands still for a while, there; its record at the end."""
    there = next(node for node in site.lab.nodes if node != vm.node)
    child = site.lab.children[{SOURCE: str(vm.node), TARGET: there, SERVER: "server"}[side]]
    armed.arm(place, what)
    begun = await site.do(migrations.create(way.wish))
    if what == "freeze":
        await armed.holds(place, child)
        await asyncio.sleep(FROZEN_S)  # longer than a heartbeat; the time itself is the fault
        thaw(child)
    else:
        await armed.struck(place)
        await asyncio.to_thread(child.process.wait)
        child.start_again()
    if side == SERVER:
        await until_ready(child)
    return await site.lab.client.wait_migration(begun.id, deadline_s=2 * END_S)


async def lives_on(site: Site, way: Way, vm_id: str, watch: Watch, story: str) -> None:
    """With all it had; one that was shut down boots anew."""
    if way.wish.kind == "cold":
        await its_node_answers(site.lab, vm_id)
        await ticks_on(site.lab, vm_id)
        watch.boots_anew()
        watch.wrong.clear()
    async with asyncio.timeout(END_S):
        await watch.more()
    assert watch.wrong == [], story


@pytest.mark.parametrize("what", ["crash", "freeze"])
@pytest.mark.parametrize("side", [SOURCE, TARGET, SERVER])
@pytest.mark.parametrize("name", ALL_WAYS)
async def test_struck_at_every_step_one_copy_lives_on(name: str, side: str, what: str) -> None:
    """All places of a side in one lab: what one strike leaves behind would be met by the next."""
    way = ALL_WAYS[name]
    with postcopy_allowed():
        async with points() as armed, a_site(pages=20) as site:
            vm = await site.machine("one", disks=2, pool=way.pool)
            noise = await site.filled(vm)
            async with watched(site.lab, vm.id) as watch:
                for place in places(way, side):
                    vm = await settled(site, vm.id)
                    done = await struck(site, armed, way, vm, side, what, place)
                    after = await settled(site, vm.id)
                    story = f"{name}, {side}, {what} at {place}: {done.state}, {done.problem}; {after.state}"
                    print(story)  # noqa: T201 - what is seen of a story that fails
                    assert (done.state, after.state) in (("completed", "running"), ("rolled_back", "running")), story
                    assert (after.node_id == done.target_node_id) == (done.state == "completed"), story
                    await lives_on(site, way, vm.id, watch, story)
                    kept = way.pool == "local" and done.state == "rolled_back"
                    await nothing_is_left(site, after, but_copies=kept)
                    root, second = (copy_at(site, disk.volume_id, after.node) for disk in after.disks)
                    assert site.content(second) == noise, story
                    assert site.content(root)[: len(site.data)] == site.data, story
