"""Thirty real migrations, each struck by a real kill at a random moment: one copy lives on, and has lost nothing.

NOVACRON_CHAOS_SEED picks another story; NOVACRON_CHAOS_ROUNDS another length.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from novacron.lab.lab import Lab
from tests.system.spine import (
    END_S,
    a_lab,
    a_vm,
    begin_slowly,
    last_tick,
    living_copies,
    needs_guest,
    restart,
    ticks_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_guest]

SEED = int(os.environ.get("NOVACRON_CHAOS_SEED", "1"))
ROUNDS = int(os.environ.get("NOVACRON_CHAOS_ROUNDS", "30"))


async def strike(lab: Lab, rng: random.Random) -> str:
    """Kill part of NovaCron at some moment of the transfer; what it was. QEMUs die in test_spine."""
    await asyncio.sleep(rng.random() * 3)  # anywhere in it, and sometimes after
    victims = rng.choice([("server",), ("node-1",), ("node-2",), ("node-1", "node-2"), ("server", "node-1", "node-2")])
    for name in victims:
        await restart(lab, name)
    return " and ".join(victims)


async def test_struck_at_any_moment_one_copy_lives_on() -> None:
    rng = random.Random(SEED)
    async with a_lab() as lab, a_vm(lab) as vm:
        seen = 0
        for number in range(ROUNDS):
            now = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
            begun = await begin_slowly(lab, now)
            victims = await strike(lab, rng)
            done = await lab.client.wait_migration(begun.id, deadline_s=2 * END_S)
            story = f"round {number}, seed {SEED}: {victims} killed, {done.state}, {done.problem}"
            after = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
            assert done.state in ("completed", "rolled_back"), story
            assert (after.node_id == done.target_node_id) == (done.state == "completed"), story
            async with asyncio.timeout(END_S):
                while living_copies(vm.id) != [after.pid]:
                    await asyncio.sleep(0.05)
            await ticks_on(lab, vm.id)
            tick, bad = await last_tick(lab, vm.id)
            assert bad == 0, story
            assert tick > seen, story
            seen = tick
