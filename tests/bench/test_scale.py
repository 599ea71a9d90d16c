"""The benches of scale run, and see what they are to measure; how fast is for a quiet machine to say."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.bench import events, scale

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.alone]


@pytest.mark.parametrize("store", ["sqlite", "etcd"])
async def test_a_small_cluster_lives_loses_a_node_and_has_its_vms_elsewhere(tmp_path: Path, store: str) -> None:
    asked = scale.Asked(nodes=20, vms=200, store=store, seconds=1.0, protected=50, heartbeat_s=0.2)
    found = await scale.measure(asked, tmp_path)
    assert scale.GOALS.keys() <= found.keys()
    assert found["failover_vms"] == 10
    assert (found["lines_broken"], found["beats_refused"]) == (0, 0)
    assert found["full_list_filtered_vms"] == 2
    assert found["beats_per_s"] > 0


async def test_every_client_hears_every_event_beside_one_that_does_not_read(tmp_path: Path) -> None:
    asked = argparse.Namespace(clients=20, per_s=200.0, seconds=1.0, profile=None)
    found = await events.measure(asked, tmp_path)
    assert events.GOALS.keys() <= found.keys()
    assert (found["missed"], found["missed_beside_a_slow_reader"], found["lost_clients"]) == (0, 0, 0)
    assert found["heard_per_s"] == 20 * 200.0
