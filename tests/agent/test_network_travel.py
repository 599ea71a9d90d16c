"""When a mover calls the networks: what a guest says goes along, and is never waited for longer than it must be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from novacron.agent import mover
from novacron.agent.host import Host
from novacron.agent.network import Luggage, ability
from novacron.config import AgentConfig
from novacron.errors import MonitorFailed
from novacron.model.machine import MachineSpec
from novacron.model.network import Flow, Protocol
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import SimPool
from novacron.wire import moving
from tests.agent.test_mover import MIGRATION, VM, Walk

pytestmark = pytest.mark.anyio

FLOW = Flow(
    mac="52:54:00:00:00:01", protocol=Protocol.TCP, address="10.5.0.2", port=80, peer_address="10.5.0.3",
    peer_port=5000, left_s=60,
)  # fmt: skip


class Recorder:
    """Notes who ran when it was called."""

    def __init__(self) -> None:
        self.cluster: SimCluster | None = None
        self.told: list[tuple[str, list[str], int, tuple[Flow, ...]]] = []

    def _note(self, what: str, spec: MachineSpec, flows: Sequence[Flow] = ()) -> None:
        assert self.cluster is not None
        self.told.append((what, self.cluster.world.running(VM), spec.generation, tuple(flows)))

    async def leaving(self, spec: MachineSpec) -> Luggage:
        self._note("leaving", spec)
        return Luggage((FLOW,), 7.0)

    async def arriving(self, spec: MachineSpec, flows: Sequence[Flow]) -> None:
        self._note("arriving", spec, flows)

    async def arrived(self, spec: MachineSpec) -> None:
        self._note("arrived", spec)

    async def not_arrived(self, spec: MachineSpec) -> None:
        self._note("not_arrived", spec)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(mover, "StayAtHome", lambda: made)
    return made


@pytest.fixture
async def walk(tmp_path: Path, recorder: Recorder) -> AsyncIterator[Walk]:
    cluster = recorder.cluster = SimCluster(tmp_path, HandClock(), ["a", "b"])
    await cluster.start()
    made = Walk(cluster)
    await made.start()
    yield made
    await cluster.stop()


async def take_over(walk: Walk, flows: tuple[Flow, ...]) -> moving.Arrived:
    args = moving.TakeOver(vm_id=VM, generation=2, migration_id=MIGRATION, flows=flows)
    arrived: moving.Arrived = await walk.call("b", args, moving.Arrived)
    return arrived


async def test_conversations_leave_when_it_stands_still_and_arrive_before_it_runs(
    walk: Walk, recorder: Recorder
) -> None:
    await walk.accept()
    departed = await walk.send()
    assert departed.flows == (FLOW,)
    assert departed.stopped_ago_ms >= 7.0, "gathering them is part of the guest's pause"
    await take_over(walk, departed.flows)
    assert recorder.told == [
        ("leaving", [], 1, ()),
        ("arriving", [], 2, (FLOW,)),
        ("arrived", ["b"], 2, ()),
    ]


async def test_a_machine_that_does_not_continue_is_found_where_it_was(walk: Walk, recorder: Recorder) -> None:
    await walk.accept()
    await walk.send()
    walk.cluster["b"].host.fail("take_over", MonitorFailed("no"))
    with pytest.raises(MonitorFailed):
        await take_over(walk, ())
    assert [(what, generation) for what, _, generation, _ in recorder.told[1:]] == [("arriving", 2), ("not_arrived", 1)]


async def test_a_node_tells_where_its_tunnels_end_only_if_it_can_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(SimPool(tmp_path), "192.0.2.1", tunnel_address="192.0.2.2")
    monkeypatch.setattr(ability, "missing", list)
    facts = await host.facts(())
    assert (facts.tunnel_address, "overlay" in facts.abilities) == ("192.0.2.2", True)
    monkeypatch.setattr(ability, "missing", lambda: ["something"])
    facts = await host.facts(())
    assert (facts.tunnel_address, "overlay" in facts.abilities) == ("", False)


def test_tunnels_end_where_streams_do_unless_told_otherwise(tmp_path: Path) -> None:
    def address(**more: str) -> str:
        return AgentConfig(
            server="unix:/s", secret_file=tmp_path, node_name="n", state_dir=tmp_path, run_dir=tmp_path,
            pool_dir=tmp_path, migration_host="192.0.2.1", **more,
        ).tunnel_address  # fmt: skip

    assert address() == "192.0.2.1"
    assert address(tunnel_host="192.0.2.2") == "192.0.2.2"
