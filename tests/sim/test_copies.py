"""Copies of a parked VM over the API, with the production parts between: begun on its node, each a VM of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from novacron.clock import SystemClock
from novacron.control.store.kinds import VMS, VOLUMES
from novacron.model.machine import MachineStatus
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.sim_pool import POOL_ID
from tests.control.api import Api, an_api, fields_of, problem_of
from tests.sim.test_api_to_machine import Cluster, in_state, until

pytestmark = pytest.mark.anyio

GOLDEN = {"name": "golden", "image": "tiny", "nics": [], "shared_memory": True, "node": "node-b"}


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(FakeDriver, "name", "qemu")
    return Cluster(tmp_path / "nodes", SystemClock(), ["node-a", "node-b"])


@pytest.fixture
async def api(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Api]:
    (tmp_path / "server").mkdir()
    async with an_api(tmp_path / "server", cluster, POOL_ID) as made:
        await cluster.start()
        yield made
        await cluster.stop()


async def _vm(api: Api, **changed: Any) -> str:
    await api.image()
    vm = (await api.http.post("/api/v1/vms", json=GOLDEN | changed)).json()
    path = f"/api/v1/vms/{vm['id']}"
    await in_state(api, path, "running")
    await until(api, path, lambda seen: seen["task"] is None)
    return path


async def _parked(api: Api, **changed: Any) -> str:
    path = await _vm(api, **changed)
    assert (await api.http.post(f"{path}/park")).status_code == 202
    await in_state(api, path, "parked")
    await until(api, path, lambda seen: seen["task"] is None)
    return path


async def test_copies_begin_where_it_stood_and_are_vms_like_any_other(api: Api, cluster: Cluster) -> None:
    path = await _parked(api)
    wish = {"name": "worker", "count": 3, "nics": [{"network": "user"}], "labels": {"of": "golden"}}
    answer = await api.http.post(f"{path}/copies", json=wish)
    assert answer.status_code == 202
    made = answer.json()["items"]
    assert [vm["name"] for vm in made] == ["worker-1", "worker-2", "worker-3"]
    parent = (await api.http.get(path)).json()
    for vm in made:
        seen = await in_state(api, f"/api/v1/vms/{vm['id']}", "running")
        assert (seen["node"], seen["parent_id"]) == ("node-b", None)  # from now on it boots as any other
        machine = cluster["node-b"].host.machines[vm["id"]]
        golden = parent["disks"][0]["volume_id"]
        assert machine.launch.spec.disks[0].source_volume_id == golden
        assert machine.launch.spec.hostname == vm["name"]
    macs = {vm["nics"][0]["mac"] for vm in made}
    assert len(macs) == 3
    volumes = {stored.record.source_volume_id for stored in api.records.all(VOLUMES)}
    assert parent["disks"][0]["volume_id"] in volumes
    stopped = await api.http.post(f"/api/v1/vms/{made[0]['id']}/stop", json={"force": True})
    assert stopped.status_code == 202
    await in_state(api, f"/api/v1/vms/{made[0]['id']}", "stopped")


async def test_to_cloud_init_a_copy_is_no_new_instance_nor_is_a_copy_of_a_copy(api: Api, cluster: Cluster) -> None:
    path = await _parked(api, cloud_init={"user_data": "#cloud-config\nhostname: golden\n"})
    told = f"instance-id: {path.rpartition('/')[2]}\n"
    for name in ("first", "second"):
        (made,) = (await api.http.post(f"{path}/copies", json={"name": name})).json()["items"]
        path = f"/api/v1/vms/{made['id']}"
        await in_state(api, path, "running")
        await until(api, path, lambda seen: seen["task"] is None)
        seed = cluster["node-b"].host.machines[made["id"]].launch.spec.cloud_init
        assert seed is not None
        assert (seed.meta_data, seed.user_data) == (told, "#cloud-config\nhostname: golden\n")
        assert (await api.http.post(f"{path}/restart", json={"force": True})).status_code == 202
        await until(api, path, lambda seen: seen["task"] is None)
        assert (await api.http.post(f"{path}/park")).status_code == 202
        await in_state(api, path, "parked")
        await until(api, path, lambda seen: seen["task"] is None)


async def test_a_copy_is_parked_only_once_it_was_started_anew(api: Api, cluster: Cluster) -> None:
    path = await _parked(api)
    (made,) = (await api.http.post(f"{path}/copies", json={"name": "one"})).json()["items"]
    path = f"/api/v1/vms/{made['id']}"
    await in_state(api, path, "running")
    await until(api, path, lambda seen: seen["task"] is None)
    assert (await api.http.post(f"{path}/park")).status_code == 202
    seen = await until(api, path, lambda seen: seen["task"] is None and seen["problem"] is not None)
    assert seen["problem"]["code"] == "unsupported"
    assert seen["problem"]["remedy"] == "novacron vm restart, then park it"
    assert (seen["state"], seen["desired"], seen["problem"]["refused"]) == ("running", "running", True)
    assert cluster["node-b"].host.machines[made["id"]].report.status is MachineStatus.RUNNING
    assert (await api.http.post(f"{path}/restart", json={"force": True})).status_code == 202
    seen = await until(api, path, lambda seen: seen["task"] is None)
    assert (seen["state"], seen["problem"]) == ("running", None)


async def test_a_parked_vm_can_go_and_its_copies_stay(api: Api) -> None:
    path = await _parked(api)
    (copy,) = (await api.http.post(f"{path}/copies", json={"name": "one"})).json()["items"]
    await in_state(api, f"/api/v1/vms/{copy['id']}", "running")
    assert (await api.http.delete(path)).status_code == 202
    await until(api, path, lambda seen: seen.get("status") == 404)
    assert (await api.http.get(f"/api/v1/vms/{copy['id']}")).json()["state"] == "running"


async def test_a_copy_of_what_is_no_longer_parked_says_so(api: Api) -> None:
    path = await _parked(api)
    assert (await api.http.post(f"{path}/start")).status_code == 202
    await in_state(api, path, "running")
    refused = await api.http.post(f"{path}/copies", json={"name": "late"})
    assert problem_of(refused, 409, "state_conflict")["reasons"][0]["remedy"] == "novacron vm park golden"


async def test_a_card_of_a_copy_is_not_booted_from(api: Api) -> None:
    path = await _parked(api)
    asked = {"name": "late", "nics": [{}, {"boot_order": 1}]}
    problem = problem_of(await api.http.post(f"{path}/copies", json=asked), 422, "invalid_input")
    assert fields_of(problem) == ["nics.1.boot_order"]


async def test_what_cannot_be_parked_is_refused_with_the_remedy(api: Api) -> None:
    path = await _vm(api, shared_memory=False)
    problem_of(await api.http.post(f"{path}/park"), 422, "unsupported")


async def test_a_vm_with_cards_is_not_parked(api: Api) -> None:
    path = await _vm(api, nics=[{"network": "user"}])
    refused = problem_of(await api.http.post(f"{path}/park"), 409, "state_conflict")
    assert refused["reasons"][0]["code"] == "nics.present"


async def test_all_copies_or_none(api: Api) -> None:
    path = await _parked(api)
    refused = await api.http.post(f"{path}/copies", json={"name": "many", "count": 100})
    problem_of(refused, 507, "no_room")
    assert len(api.records.all(VMS)) == 1


async def test_repeated_under_its_key_it_copies_once(api: Api) -> None:
    path = await _parked(api)
    sent = [
        await api.http.post(f"{path}/copies", json={"name": "one"}, headers={"idempotency-key": "k"}) for _ in range(2)
    ]
    assert [answer.status_code for answer in sent] == [202, 202]
    assert sent[0].json()["items"][0]["id"] == sent[1].json()["items"][0]["id"]
