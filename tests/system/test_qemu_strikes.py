"""Real migrations whose QEMUs are killed and frozen, and whose link is cut, at every recorded step.

A failpoint holds the server exactly before or after the step; struck is also in the middle of what is copied. Some
places of each story are chosen by NOVACRON_CHAOS_SEED, NOVACRON_CHAOS_PLACES of them; NOVACRON_CHAOS_ALL takes all.
"""

from __future__ import annotations

import asyncio

import pytest

from novacron.client import migrations
from tests.system.disk_site import a_site, needs_nodes
from tests.system.points import points
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.spine import END_S, needs_guest
from tests.system.strikes import (
    STRIKES,
    WAYS,
    chosen,
    copy_at,
    has_subject,
    may_be_kept,
    may_be_lost,
    nothing_is_left,
    revived,
    settled,
    struck,
)
from tests.system.watch import watched

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_nodes, *needs_guest]


@pytest.mark.parametrize("what", STRIKES)
@pytest.mark.parametrize("name", WAYS)
async def test_no_copy_runs_twice_and_none_is_lost_that_had_not_to_be(name: str, what: str) -> None:
    """All places of a story in one lab: what one strike leaves behind would be met by the next."""
    way = WAYS[name]
    places = chosen([place for place in way.places if has_subject(way, what, place)], f"{name} {what}")
    with postcopy_allowed():
        async with points() as armed, a_site(pages=20) as site:
            vm = await site.machine("one", disks=2, pool=way.pool)
            noise = await site.filled(vm)
            async with watched(site.lab, vm.id) as watch:
                for place in places:
                    vm = await settled(site, vm.id)
                    story = f"{name}, {what} at {place}"
                    done = await struck(site, armed, way, vm, what, place)
                    after = await settled(site, vm.id)
                    story += f": {done.state}, {done.problem}; {after.state} on {after.node}"
                    print(story)  # noqa: T201 - what is seen of a story that fails
                    if after.state == "error":
                        assert may_be_lost(way, what, place), story
                        assert (after.node_id == done.target_node_id) == ("commit" in done.steps_done), story
                        after = await revived(site, after, watch)
                    else:
                        assert done.state in ("completed", "rolled_back"), story
                        assert (after.node_id == done.target_node_id) == (done.state == "completed"), story
                    assert (done.kept_copies is not None) == (done.state == "failed" and way.pool == "local"), story
                    if done.kept_copies is not None:
                        await site.do(migrations.discard_copies(done.id))
                    async with asyncio.timeout(END_S):
                        await watch.more()
                    assert watch.wrong == [], story
                    await nothing_is_left(site, after, but_copies=may_be_kept(way, what, done))
                    root, second = (copy_at(site, disk.volume_id, after.node) for disk in after.disks)
                    assert site.content(second) == noise, story
                    assert site.content(root)[: len(site.data)] == site.data, story
