"""A node is lost, and so is the server that leads: its guarded VM ends there and runs elsewhere, never twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from novacron.control.store.kinds import MEMBERS
from novacron.model.ha import FenceClass, HaPolicy, Protection
from novacron.model.membership import MemberState
from novacron.testing.fake_driver import FakeDriver
from tests.sim.servers import Servers, servers

pytestmark = pytest.mark.anyio

GUARDED = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.AGENT)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


async def _cut_off(cluster: Servers, name: str) -> None:
    for server in cluster.running.values():
        await server.cut_off(name)


@pytest.mark.parametrize("seed", range(6))
async def test_whenever_the_leader_dies_a_lost_nodes_vm_runs_elsewhere_once(tmp_path: Path, seed: int) -> None:
    """The leader's end falls anywhere between the first missed heartbeat and the restart."""
    rng = random.Random(seed)
    async with servers(tmp_path, seed=seed) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a", ha=GUARDED)
        node_id = h.cluster["a"].node_id
        await _cut_off(cluster, "a")
        cut_s = h.clock.monotonic_s()
        await h.clock.advance(rng.uniform(0, 30))
        leader = await cluster.a_leader()
        if rng.random() < 0.5:
            await cluster.kill(leader)
        else:
            leader.frost.freeze()
            await cluster.a_leader(leader)
            leader.frost.thaw()
        await h.until(lambda: h.cluster.world.running(vm_id) == ["b"], "it runs elsewhere")
        assert h.clock.monotonic_s() - cut_s < 60, "a new leader sees the silence anew, and not for longer"
        assert h.vm(vm_id).node_id == h.cluster["b"].node_id
        assert h.records.find(MEMBERS, node_id).record.state is MemberState.FENCED
        assert h.cluster.world.violations == []


async def test_nodes_name_the_servers_there_are(tmp_path: Path) -> None:
    async with servers(tmp_path, "xy") as cluster:
        h = cluster.house
        node_id = h.cluster["a"].node_id

        def named() -> tuple[str, ...]:
            stored = h.records.get(MEMBERS, node_id)
            return stored.record.servers if stored else ()

        await h.until(lambda: named() == ("x", "y"), "both are named")
        epoch = h.records.find(MEMBERS, node_id).record.epoch
        await cluster.begin("z")
        await h.until(lambda: named() == ("x", "y", "z"), "and the third, once it is there")
        await cluster.kill(cluster.running["x"])
        await h.until(lambda: named() == ("y", "z"), "and not the one that has gone")
        assert h.records.find(MEMBERS, node_id).record.epoch > epoch
