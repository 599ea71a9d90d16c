"""The whole way: a request over REST until a (simulated) machine is as wished, with the production parts between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocket

from novacron.clock import SystemClock
from novacron.errors import MachineDied
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import POOL_ID
from tests.control.api import Api, an_api, problem_of

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0


class Cluster(SimCluster):
    """Lines for a server: no agent dials in, they are there."""

    async def serve(self, websocket: WebSocket) -> None:
        await websocket.close(4401)


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by
    return Cluster(tmp_path / "nodes", SystemClock(), ["node-a", "node-b"])


@pytest.fixture
async def api(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Api]:
    (tmp_path / "server").mkdir()
    async with an_api(tmp_path / "server", cluster, POOL_ID) as made:
        await cluster.start()
        yield made
        await cluster.stop()


async def until(api: Api, path: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The object at `path` as soon as it is so."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            seen: dict[str, Any] = (await api.http.get(path)).json()
            if fits(seen):
                return seen
            await api.records.caught_up(api.records.revision + 1)


async def in_state(api: Api, path: str, state: str) -> dict[str, Any]:
    return await until(api, path, lambda seen: seen.get("state") == state)


async def test_a_life_over_the_api(api: Api, cluster: Cluster) -> None:
    await api.image()
    nodes = (await api.http.get("/api/v1/nodes")).json()["items"]
    assert {node["name"]: node["state"] for node in nodes} == {"node-a": "up", "node-b": "up"}
    vm = (await api.http.post("/api/v1/vms", json={"name": "web-1", "image": "tiny"})).json()
    path = f"/api/v1/vms/{vm['id']}"
    running = await in_state(api, path, "running")
    assert running["task"] is None
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")):
        assert (await api.http.post(f"{path}/{verb}")).status_code == 202
        await until(api, path, lambda seen, state=state: seen["state"] == state and seen["task"] is None)  # type: ignore[misc]

    moved = (await api.http.post("/api/v1/migrations", json={"vm": "web-1"})).json()
    done = await in_state(api, f"/api/v1/migrations/{moved['id']}", "completed")
    assert done["figures"]["total_ms"] > 0
    there = await in_state(api, path, "running")
    assert (there["node"], there["generation"]) == (moved["target_node"], 2)
    assert there["node"] != running["node"]

    assert (await api.http.delete(f"{path}?force=true")).status_code == 202
    async with asyncio.timeout(WITHIN_S):
        while (await api.http.get(path)).status_code != 404:
            await api.records.caught_up(api.records.revision + 1)
    assert cluster.pool.volumes() == []
    assert cluster.world.violations == []


async def test_a_machine_that_does_not_start_says_why(api: Api, cluster: Cluster) -> None:
    await api.image()
    for agent in cluster.agents.values():
        agent.host.fail("start", MachineDied("the process ended: no such device"))
    vm = (await api.http.post("/api/v1/vms", json={"name": "web-1", "image": "tiny"})).json()
    failed = await in_state(api, f"/api/v1/vms/{vm['id']}", "error")
    assert failed["problem"]["code"] == "machine_died"
    assert "no such device" in failed["problem"]["message"]
    problem_of(await api.http.post("/api/v1/migrations", json={"vm": "web-1"}), 409, "state_conflict")
