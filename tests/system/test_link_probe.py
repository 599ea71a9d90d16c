"""The link probe between real agents in namespaces: a shaped link is found out; a cut one is unknown, and in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, nodes
from novacron.lab.lab import Lab
from tests.system.spine import END_S, a_lab, a_vm, needs_guest, ticks_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    *needs_guest,
]
SLOW_BIT_PER_S = 40_000_000


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with a_lab(bridged=True) as made:
        yield made


async def test_a_shaped_link_is_found_out_and_used_for_plans(lab: Lab) -> None:
    one, other = lab.nodes
    lab.link(other).set(rate_bit_per_s=SLOW_BIT_PER_S)
    try:
        found = await lab.client.do(nodes.probe_link(one, other))
    finally:
        lab.link(other).set()
    assert found.why == ""
    assert found.rate_bytes_per_s == pytest.approx(SLOW_BIT_PER_S / 8, rel=0.25)
    assert found.sent_bytes < 3 * SLOW_BIT_PER_S / 8  # a second of it, and what waited on the way
    assert found.rtt_ms is not None
    async with a_vm(lab) as vm:
        plan = await lab.client.do(migrations.plan(migrations.MigrationCreate(vm=vm.id, measure=False)))
        (there,) = (node for node in plan.nodes if not node.is_here)
        assert any("measured 0 min ago, round trip" in words for words in there.explanation), there.explanation


async def test_a_cut_link_is_unknown_in_time_and_the_guest_moves_once_it_is_back(lab: Lab) -> None:
    one, other = lab.nodes
    async with a_vm(lab) as vm:
        lab.link(other).cut()
        try:
            async with asyncio.timeout(12.0):
                found = await lab.client.do(nodes.probe_link(one, other))
        finally:
            lab.link(other).mend()
        assert (found.rate_bytes_per_s, found.measured_at) == (None, None)
        assert "cannot be measured" in found.why
        begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
        done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
        assert done.state == "completed", done.problem
        await ticks_on(lab, vm.id)
