"""Quotas of pools: what may be promised is decided once, for every way in which volumes are made or grow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.control.pools import quota
from novacron.control.pools.quota import Scope, refusals
from novacron.control.store.kinds import SNAPSHOTS, VMS, VOLUMES
from novacron.errors import NoRoom
from novacron.model.machine import MachineStatus
from novacron.model.node import Node
from novacron.model.snapshot import Consistency, Snapshot, SnapshotState
from novacron.model.vm import Problem
from novacron.model.volume import Volume
from tests.control.api import GIB, NOW, POOL_ID, Api, another, problem_of

pytestmark = pytest.mark.anyio

POOL = "/api/v1/pools/default"


@pytest.fixture
async def node(api: Api) -> Node:
    node = await api.node(memory_mib=1 << 20)
    await api.image()  # its disk is of 1 GiB
    return node


async def limit(api: Api, gib: float) -> None:
    answer = await api.http.patch(POOL, json={"quota_bytes": int(gib * GIB)})
    assert answer.status_code == 200, answer.text


async def used(api: Api) -> float:
    promised: int = (await api.http.get(POOL)).json()["promised_bytes"]
    return promised / GIB


async def post(api: Api, path: str, **body: Any) -> Any:
    return await api.http.post(f"/api/v1/{path}", json=body)


async def a_volume(api: Api, name: str, gib: int, **changes: Any) -> Volume:
    volume = Volume(
        id=api.records.new_id(), name=name, pool_id=POOL_ID, size_bytes=gib * GIB, created_at=NOW, updated_at=NOW
    )
    return (await api.records.create(VOLUMES, msgspec.structs.replace(volume, **changes))).record


def refused(answer: Any) -> dict[str, Any]:
    problem = problem_of(answer, 507, "no_room")
    (reason,) = problem["reasons"]
    assert (reason["code"], reason["subject"]) == ("quota.exceeded", "default")
    return reason  # type: ignore[no-any-return]


# -- the decision ------------------------------------------------------------------------------------------


def scope(limit_bytes: int, used_bytes: int, asked_bytes: int, name: str = "fast") -> Scope:
    return Scope(
        noun="storage pool",
        name=name,
        limit_bytes=limit_bytes,
        used_bytes=used_bytes,
        asked_bytes=asked_bytes,
        lift=f"raise {name}",
    )


@pytest.mark.parametrize(
    ("limit_bytes", "used_bytes", "asked_bytes", "passes"),
    [
        (10, 7, 3, True),
        (10, 7, 4, False),
        (10, 0, 11, False),
        (10, 10, 1, False),
        (10, 12, 0, True),  # more is used than may be: only growth is refused
        (10, 12, 1, False),
        (0, 1 << 60, 1 << 60, True),  # no limit
    ],
)
def test_what_fits_passes(limit_bytes: int, used_bytes: int, asked_bytes: int, passes: bool) -> None:
    assert (refusals([scope(limit_bytes, used_bytes, asked_bytes)]) == []) is passes


def test_a_refusal_names_whose_limit_it_is_the_figures_and_what_to_do() -> None:
    (reason,) = refusals([scope(10, 7, 4)])
    assert reason.message == "storage pool fast may promise 10 bytes: 7 are promised, 4 more are asked for"
    assert reason.remedy == "ask for at most 3 bytes, delete volumes there, or raise its quota: raise fast"
    (over,) = refusals([scope(10, 12, 4)])
    assert "at most 0 bytes" in over.remedy


def test_every_limit_that_applies_is_heard() -> None:
    told = refusals([scope(10, 7, 4, "a"), scope(10, 0, 4, "b"), scope(3, 0, 4, "c")])
    assert [reason.subject for reason in told] == ["a", "c"]


# -- every way in which volumes are made or grow -------------------------------------------------------------


async def test_a_quota_is_set_shown_and_taken_away(api: Api) -> None:
    made = (await post(api, "pools", name="fast", driver="directory", quota_bytes=5 * GIB)).json()
    assert (made["quota_bytes"], made["promised_bytes"], made["volume_count"]) == (5 * GIB, 0, 0)
    await a_volume(api, "data", 3, pool_id=made["id"])
    changed = (await api.http.patch("/api/v1/pools/fast", json={"quota_bytes": GIB})).json()
    assert (changed["quota_bytes"], changed["promised_bytes"]) == (GIB, 3 * GIB)  # less than is used: allowed
    (_, listed) = (await api.http.get("/api/v1/pools")).json()["items"]
    assert (listed["quota_bytes"], listed["promised_bytes"]) == (GIB, 3 * GIB)
    assert (await api.http.patch("/api/v1/pools/fast", json={"quota_bytes": 0})).json()["quota_bytes"] == 0
    problem_of(await api.http.patch("/api/v1/pools/fast", json={"quota_bytes": -1}), 422, "invalid_input")


async def test_volumes_are_made_up_to_it(api: Api, node: Node) -> None:
    await limit(api, 3)
    assert (await post(api, "volumes", name="a", size_bytes=2 * GIB)).status_code == 202
    reason = refused(await post(api, "volumes", name="b", size_bytes=GIB + 512))
    assert reason["message"] == (
        f"storage pool default may promise {3 * GIB} bytes: {2 * GIB} are promised, {GIB + 512} more are asked for"
    )
    assert "novacron pool update default --quota" in reason["remedy"]
    assert (await post(api, "volumes", name="b", image="tiny")).status_code == 202
    assert await used(api) == 3
    refused(await post(api, "volumes", name="c", image="tiny"))
    assert len(api.records.all(VOLUMES)) == 2
    stored = api.records.find(VOLUMES, "a")
    await api.records.change(VOLUMES, stored.record.id, lambda now: msgspec.structs.replace(now, task=None))
    refused(await post(api, "volumes", name="c", volume="a"))
    await limit(api, 5)
    assert (await post(api, "volumes", name="c", volume="a")).status_code == 202


async def test_other_pools_have_other_quotas(api: Api, node: Node) -> None:
    nfs = {"path": "/srv/nas", "server": "192.0.2.1", "export": "/vms"}
    assert (await post(api, "pools", name="nas", driver="nfs", options=nfs, quota_bytes=9 * GIB)).status_code == 201
    await limit(api, 1)
    assert (await post(api, "volumes", name="a", size_bytes=9 * GIB, pool="nas")).status_code == 202
    assert (await post(api, "volumes", name="b", size_bytes=GIB)).status_code == 202
    problem = problem_of(await post(api, "volumes", name="c", size_bytes=1 << 20, pool="nas"), 507, "no_room")
    assert problem["reasons"][0]["subject"] == "nas"


async def test_less_than_is_used_stops_growth_alone(api: Api, node: Node) -> None:
    data = await a_volume(api, "data", 4)
    await limit(api, 2)
    path = "/api/v1/volumes/data"
    refused(await api.http.patch(path, json={"size_bytes": 4 * GIB + 512}))
    assert api.records.find(VOLUMES, "data").record == data
    assert (await api.http.patch(path, json={"size_bytes": 4 * GIB, "description": "x"})).status_code == 200
    assert (await post(api, "vms", name="web", image="tiny", desired="stopped")).status_code == 507
    vm = await api.vm("old", node=node)
    assert (await post(api, f"vms/{vm.record.id}/disks", volume="data")).status_code == 200  # nothing new
    await limit(api, 5)
    assert (await api.http.patch(path, json={"size_bytes": 5 * GIB})).status_code == 202


async def test_growing_again_what_failed_to_grow_asks_for_nothing(api: Api, node: Node) -> None:
    problem = Problem(code="unavailable", message="no line", at=NOW)
    await a_volume(api, "data", 4, problem=problem)
    await limit(api, 2)
    assert (await api.http.patch("/api/v1/volumes/data", json={"size_bytes": 4 * GIB})).status_code == 202


async def test_disks_of_vms_count_and_are_refused_whole(api: Api, node: Node) -> None:
    await limit(api, 3)
    wish = {"image": "tiny", "desired": "stopped", "disks": [{"size_bytes": GIB}]}
    assert (await post(api, "vms", name="one", **wish)).status_code == 201
    refused(await post(api, "vms", name="two", **wish))
    assert [stored.record.name for stored in api.records.all(VMS)] == ["one"]
    assert await used(api) == 2
    refused(await post(api, "vms/one/disks", size_bytes=GIB + 512))
    assert (await post(api, "vms/one/disks", size_bytes=GIB)).status_code == 200
    refused(await post(api, "vms/one/disks", size_bytes=1 << 20))


async def test_vms_of_a_template_are_all_made_or_none(api: Api, node: Node) -> None:
    for number in range(2, 5):
        await api.node(f"node-{number}")
    made = await post(api, "templates", name="web", vm={"image": "tiny", "memory_mib": 64, "vcpus": 1})
    assert made.status_code == 201, made.text
    await limit(api, 49)
    reason = refused(await post(api, "templates/web/instantiate", name="web", count=50))
    assert f"{50 * GIB} more are asked for" in reason["message"]
    assert api.records.all(VMS) == []
    assert api.records.all(VOLUMES) == []
    await limit(api, 50)
    assert (await post(api, "templates/web/instantiate", name="web", count=50)).status_code == 202
    assert await used(api) == 50


async def test_copies_of_a_parked_vm_count(api: Api, node: Node) -> None:
    vm = await api.vm("golden", node=node, status=MachineStatus.PARKED)
    await limit(api, 2)
    refused(await post(api, "vms/golden/copies", name="late", count=3))
    assert [stored.record.id for stored in api.records.all(VMS)] == [vm.record.id]
    answer = await post(api, "vms/golden/copies", name="early", count=2)
    assert answer.status_code == 202, answer.text
    assert await used(api) == 2


async def test_going_back_to_a_larger_disk_is_growth_that_counts_from_the_start(api: Api, node: Node) -> None:
    stored = await api.vm("web", node=node)
    (disk,) = stored.record.spec.disks  # of 1 GiB
    await a_volume(api, "web-0", 1, id=disk.volume_id, vm_id=stored.record.id)
    then = msgspec.structs.replace(stored.record.spec, disks=(msgspec.structs.replace(disk, size_bytes=3 * GIB),))
    snapshot = Snapshot(
        id=api.records.new_id(),
        name="large",
        vm_id=stored.record.id,
        state=SnapshotState.READY,
        consistency=Consistency.STOPPED,
        spec=then,
        volumes=(disk.volume_id,),
        created_at=NOW,
        updated_at=NOW,
    )
    await api.records.create(SNAPSHOTS, snapshot)
    path = f"snapshots/{snapshot.id}/revert"
    await limit(api, 2)
    refused(await post(api, path))
    assert api.records.find(SNAPSHOTS, snapshot.id).record.state is SnapshotState.READY
    await limit(api, 4)
    assert (await post(api, path)).status_code == 202
    assert await used(api) == 3  # promised, though the disk is not that large yet
    refused(await post(api, "volumes", name="b", size_bytes=GIB + 512))
    assert (await post(api, "volumes", name="b", size_bytes=GIB)).status_code == 202


# -- many at once --------------------------------------------------------------------------------------------


async def outcomes(servers: list[Api], ask: Callable[[Api, int], Any]) -> list[int]:
    """The statuses of 50 requests sent at once, to the servers in turn."""
    turns = zip(itertools.cycle(servers), range(50))
    return sorted([answer.status_code for answer in await asyncio.gather(*(ask(*turn) for turn in turns))])


async def test_of_fifty_volumes_at_once_exactly_as_many_are_made_as_fit(api: Api, node: Node) -> None:
    await limit(api, 20.5)
    statuses = await outcomes([api], lambda one, number: post(one, "volumes", name=f"v-{number}", size_bytes=GIB))
    assert statuses == [202] * 20 + [507] * 30
    assert await used(api) == 20


async def test_of_fifty_vms_at_once_at_two_servers_exactly_as_many_are_made_as_fit(
    api: Api, node: Node, tmp_path: Path
) -> None:
    await limit(api, 7)
    async with another(api, tmp_path) as other:
        wish = {"image": "tiny", "desired": "stopped"}
        statuses = await outcomes([api, other], lambda one, number: post(one, "vms", name=f"vm-{number}", **wish))
    assert statuses == [201] * 7 + [507] * 43
    assert (await used(api), len(api.records.all(VMS))) == (7, 7)


async def test_of_fifty_that_grow_at_once_at_two_servers_as_many_do_as_fit(
    api: Api, node: Node, tmp_path: Path
) -> None:
    for number in range(50):
        await a_volume(api, f"v-{number}", 1)
    await limit(api, 55)
    async with another(api, tmp_path) as other:
        body = {"size_bytes": 2 * GIB}
        statuses = await outcomes(
            [api, other], lambda one, number: one.http.patch(f"/api/v1/volumes/v-{number}", json=body)
        )
    assert statuses == [202] * 5 + [507] * 45
    assert await used(api) == 55


async def test_every_limit_is_asked_where_volumes_lie_in_several_pools(api: Api, node: Node) -> None:
    pool = (await post(api, "pools", name="fast", driver="directory", quota_bytes=GIB)).json()
    await limit(api, 1)
    wanted = [
        Volume(id=api.records.new_id(), name="", pool_id=one, size_bytes=2 * GIB, created_at=NOW, updated_at=NOW)
        for one in (POOL_ID, pool["id"])
    ]
    with pytest.raises(NoRoom) as caught:
        quota.check(api.records, wanted)
    assert sorted(reason.subject for reason in caught.value.reasons) == ["default", "fast"]
    assert all(reason.message in caught.value.message for reason in caught.value.reasons)
