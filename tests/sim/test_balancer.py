"""The balancer through the production parts: acting it begins what it shows, and rests; proposing it begins nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.balancer.loads import SAMPLE_S, Loads
from novacron.control.balancer.service import BalancerService
from novacron.control.balancer.survey import Surveyor
from novacron.control.balancer.worker import BalancerWorker
from novacron.control.store.kinds import MIGRATIONS
from novacron.model.balancer import BALANCER, BALANCER_LABEL, Mode, Settings
from novacron.model.migration import MigrationState, is_final
from novacron.model.node import NodeUsage
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.hand_clock import HandClock
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio
ACTING = Settings(mode=Mode.ACT, margin=0.01, max_moves=1)


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


def parts(h: House) -> tuple[BalancerService, BalancerWorker]:
    surveyor = Surveyor(h.records, h.room, h.planner, Loads(h.cluster, h.records, h.clock), h.clock)
    service = BalancerService(h.records, surveyor, h.clock)
    return service, BalancerWorker(h.records, service, h.migrations, h.clock)


async def test_acting_it_moves_what_it_shows_one_at_a_time_and_rests(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="ab", transfer_s=1.0) as h:
        vms = [await h.running_vm("a") for _ in range(4)]
        service, worker = parts(h)
        await service.set(Settings(mode=Mode.PROPOSE, margin=0.01, max_moves=1), None)
        proposed = await service.plan()
        assert proposed is not None
        assert len(proposed.moves) == 1
        await worker.round()
        assert h.records.all(MIGRATIONS) == []
        await service.set(ACTING, None)
        await worker.round()
        await worker.round()  # one is under way: no second
        (begun,) = [stored.record for stored in h.records.all(MIGRATIONS)]
        assert begun.vm_id == proposed.moves[0].vm_id
        assert (begun.requested_by, begun.labels) == (BALANCER, {BALANCER_LABEL: "load"})
        await h.until(lambda: is_final(h.migration(begun.id)), "it ends")
        assert h.migration(begun.id).state is MigrationState.COMPLETED
        assert h.vm(begun.vm_id).node_id == h.cluster["b"].node_id
        _, successor = parts(h)  # as on another server: it knows no more than the records
        await successor.round()
        assert len(h.records.all(MIGRATIONS)) == 1
        plan = await service.plan()
        assert plan is not None
        assert {reason.code for reason in plan.reasons} >= {"node.cooling_down"}
        await service.set(Settings(mode=Mode.ACT, margin=0.01, max_moves=1, node_cool_down_s=0.0), None)
        await worker.round()
        newest = h.records.all(MIGRATIONS)[-1].record
        assert newest.vm_id in set(vms) - {begun.vm_id}


class Meter:
    """One node's load, as it is said."""

    def __init__(self) -> None:
        self.load = 1.0
        self.heard: float | None = 0.5

    def usage(self, node_id: str) -> NodeUsage | None:
        return NodeUsage(load_1m=self.load)

    def heard_ago_s(self, node_id: str) -> float | None:
        return self.heard


async def test_a_load_counts_after_a_window_and_is_smoothed(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="a") as h:
        clock, meter, node_id = HandClock(), Meter(), h.cluster["a"].node_id
        loads = Loads(meter, h.records, clock)
        loads.sample()
        assert loads.load(node_id) is None
        for _ in range(30):
            await clock.advance(SAMPLE_S)
            loads.sample()
        assert loads.load(node_id) == pytest.approx(1.0)
        meter.load = 11.0  # one spike moves it little
        await clock.advance(SAMPLE_S)
        loads.sample()
        assert loads.load(node_id) == pytest.approx(1.33, abs=0.02)
        meter.heard = 31.0
        loads.sample()
        assert loads.load(node_id) is None
