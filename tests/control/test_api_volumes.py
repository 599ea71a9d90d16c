"""Volumes over the API: what is recorded for VMs and for themselves, what is refused, and what is decided for each."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.store.kinds import POOLS, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.shelf import Stored
from novacron.control.vms import drives
from novacron.control.volumes import decide
from novacron.control.volumes.adopt import adopt_disks
from novacron.errors import NoRoom, Unavailable
from novacron.model.machine import Disk, MachineStatus
from novacron.model.node import Node, NodeState
from novacron.model.pool import Pool, PoolDriver, Reach
from novacron.model.snapshot import Consistency, Snapshot, SnapshotState
from novacron.model.vm import Problem, Task, TaskKind, Vm
from novacron.model.volume import Place, Volume, VolumeState, VolumeTask, name_for, state_of
from tests.control.api import GIB, NOW, POOL_ID, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(api: Api) -> Node:
    return await api.node()


@pytest.fixture
async def fast(api: Api, node: Node) -> Pool:
    """A pool of each node's own, which node-1 reaches."""
    reach = {node.id: Reach(available=True, checked_at=NOW, free_bytes=5 * GIB, size_bytes=9 * GIB)}
    return await a_pool(api, "fast", reach=reach)


async def a_pool(api: Api, name: str, **changes: Any) -> Pool:
    pool = Pool(
        id=api.records.new_id(),
        name=name,
        driver=PoolDriver.DIRECTORY,
        options={"path": f"/srv/{name}"},
        created_at=NOW,
        updated_at=NOW,
    )
    return (await api.records.create(POOLS, msgspec.structs.replace(pool, **changes))).record


async def post(api: Api, path: str, status: int, **body: Any) -> dict[str, Any]:
    answer = await api.http.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def settled(api: Api, name: str, **changes: Any) -> Volume:
    """As after its task was done."""
    volume = api.records.find(VOLUMES, name).record
    changes = {"task": None} | changes
    stored = await api.records.change(VOLUMES, volume.id, lambda now: msgspec.structs.replace(now, **changes))
    return stored.record if stored else volume


def volumes(api: Api) -> dict[str, Volume]:
    found = {stored.record.name: stored.record for stored in api.records.all(VOLUMES)}
    return dict(sorted(found.items()))


# -- with VMs ----------------------------------------------------------------------------------------------


async def test_a_vms_disks_are_volumes_that_go_with_it(api: Api, node: Node) -> None:
    await api.image()
    vm = await post(api, "vms", 202, name="web-1", image="tiny", disks=[{"size_bytes": GIB, "qos": {"iops": 99}}])
    made = volumes(api)
    assert list(made) == ["web-1-0", "web-1-1"]
    root, more = made.values()
    assert [disk["volume_id"] for disk in vm["disks"]] == [root.id, more.id]
    assert [disk["slot"] for disk in vm["disks"]] == [1, 2]
    assert (root.backing_digest, root.with_vm, root.vm_id, root.task, root.pool_id) == (
        *("d" * 64, True, vm["id"], None, POOL_ID),
    )
    assert (more.qos.iops, more.size_bytes, more.node_id) == (99, GIB, "")
    assert vm["disks"][1]["qos"] == {"iops": 99, "bytes_per_s": 0}
    shown = (await api.http.get("/api/v1/volumes?vm=web-1")).json()["items"]
    assert sorted((one["name"], one["state"], one["vm"], one["pool"]) for one in shown) == [
        ("web-1-0", "attached", "web-1", "default"),
        ("web-1-1", "attached", "web-1", "default"),
    ]


async def test_a_name_that_is_taken_is_made_longer(api: Api, node: Node) -> None:
    await api.image()
    await post(api, "volumes", 202, name="web-1-0", size_bytes=GIB)
    vm = await post(api, "vms", 202, name="web-1", image="tiny")
    volume_id = vm["disks"][0]["volume_id"]
    assert set(volumes(api)) == {"web-1-0", f"web-1-0-{volume_id[-12:]}"}


def test_names_of_disks_are_legal() -> None:
    volume_id = "0190b36e-0000-7000-8000-00000000aaaa"
    assert name_for("a" * 63, 0, volume_id, lambda _: False) == "a" * 61 + "-0"
    assert name_for("a" * 63, 10, volume_id, lambda _: True) == "a" * 47 + "-10-00000000aaaa"


async def test_disks_lie_where_they_are_asked_to(api: Api, node: Node, fast: Pool) -> None:
    await api.node("node-2", memory_mib=1 << 20)  # emptier, and does not reach the pool
    await api.image()
    vm = await post(
        api, "vms", 202, name="web-1", image="tiny", root_pool="fast", root_qos={"bytes_per_s": 7},
        disks=[{"size_bytes": GIB, "boot_order": 1}],
    )  # fmt: skip
    assert vm["node"] == "node-1"
    assert [(disk["pool_id"], disk["boot_order"]) for disk in vm["disks"]] == [(fast.id, 0), ("", 1)]
    root, more = volumes(api).values()
    assert (root.pool_id, root.node_id, root.qos.bytes_per_s) == (fast.id, node.id, 7)
    assert (more.pool_id, more.node_id) == (POOL_ID, "")


async def test_a_pool_no_node_reaches_is_refused_with_a_reason_for_each(api: Api, node: Node, fast: Pool) -> None:
    await api.image()
    other = await api.node("node-2")
    await a_pool(api, "far", reach={other.id: Reach(available=False, reason="/srv/far is not there", checked_at=NOW)})
    refused = problem_of(
        await api.http.post("/api/v1/vms", json={"name": "w", "image": "tiny", "root_pool": "far"}), 507, "no_room"
    )
    told = {reason["subject"]: (reason["code"], reason["message"]) for reason in refused["reasons"]}
    assert told["node-1"][0] == "pool.unknown"
    assert told["node-2"] == ("pool.unreachable", "node-2: it does not reach storage pool far: /srv/far is not there")
    assert volumes(api) == {}


async def test_a_vm_takes_volumes_that_exist_and_goes_where_they_lie(api: Api, node: Node, fast: Pool) -> None:
    await api.image()
    other = await api.node("node-2", memory_mib=1 << 20)
    both = fast.reach | {other.id: fast.reach[node.id]}
    await api.records.change(POOLS, fast.id, lambda pool: msgspec.structs.replace(pool, reach=both))
    await post(api, "volumes", 202, name="data", size_bytes=GIB, pool="fast", node="node-1", qos={"iops": 5})
    vm = await post(api, "vms", 202, name="web-1", image="tiny", disks=[{"volume": "data"}])
    assert vm["node"] == "node-1"
    data = volumes(api)["data"]
    assert (data.vm_id, data.with_vm, data.node_id) == (vm["id"], False, node.id)
    assert vm["disks"][1]["qos"]["iops"] == 5
    taken = await api.http.post("/api/v1/vms", json={"name": "web-2", "image": "tiny", "disks": [{"volume": "data"}]})
    assert fields_of(problem_of(taken, 409, "conflict")) == ["web-1"]
    await api.records.change(VOLUMES, data.id, lambda one: msgspec.structs.replace(one, vm_id=""))
    elsewhere = {"name": "web-2", "image": "tiny", "disks": [{"volume": "data"}], "node": "node-2"}
    refused = problem_of(await api.http.post("/api/v1/vms", json=elsewhere), 507, "no_room")
    assert "pool.elsewhere" in {reason["code"] for reason in refused["reasons"]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"disks": [{}]}, "disks.0"),
        ({"disks": [{"size_bytes": GIB, "volume": "data"}]}, "disks.0"),
        ({"disks": [{"volume": "data", "pool": "default"}]}, "disks.0"),
        ({"disks": [{"volume": "nothing"}]}, "disks.0.volume"),
        ({"disks": [{"volume": "data"}, {"volume": "data"}]}, "disks.1.volume"),
        ({"disks": [{"size_bytes": GIB, "pool": "nothing"}]}, "disks.0.pool"),
        ({"root_pool": "nothing"}, "root_pool"),
        ({"disks": [{"size_bytes": GIB, "qos": {"iops": -1}}]}, "disks.0.qos.iops"),
    ],
)
async def test_what_disks_cannot_be(api: Api, node: Node, body: dict[str, Any], field: str) -> None:
    await api.image()
    await post(api, "volumes", 202, name="data", size_bytes=GIB)
    refused = await api.http.post("/api/v1/vms", json={"name": "web-1", "image": "tiny"} | body)
    assert fields_of(problem_of(refused, 422, "invalid_input")) == [field]


async def test_a_volume_goes_with_one_vm_of_many(api: Api, node: Node) -> None:
    await api.image()
    await post(api, "volumes", 202, name="data", size_bytes=GIB)
    body = {"image": "tiny", "disks": [{"volume": "data"}]}
    first, second = [await api.http.post("/api/v1/vms", json={"name": name} | body) for name in ("a", "b")]
    assert (first.status_code, second.status_code) == (202, 409)


# -- of their own ------------------------------------------------------------------------------------------


async def test_a_volume_is_recorded_and_under_way(api: Api) -> None:
    made = await post(api, "volumes", 202, name="data", size_bytes=GIB, labels={"app": "db"}, qos={"iops": 7})
    assert (made["state"], made["task"], made["pool"], made["vm"]) == ("creating", "create", "default", None)
    assert (await api.http.get(f"/api/v1/volumes/{made['id']}")).json() == made
    for query, count in (("pool=default", 1), ("state=creating", 1), ("state=error", 0), ("label=app=db", 1)):
        assert len((await api.http.get(f"/api/v1/volumes?{query}")).json()["items"]) == count, query
    problem_of(await api.http.post("/api/v1/volumes", json={"name": "data", "size_bytes": GIB}), 409, "name_taken")
    again = {"name": "more", "size_bytes": GIB}
    keyed = [await api.http.post("/api/v1/volumes", json=again, headers={"idempotency-key": "k"}) for _ in range(2)]
    assert keyed[0].json() == keyed[1].json()


async def test_a_volume_of_a_nodes_own_pool_lies_on_the_one_with_most_room(api: Api, node: Node, fast: Pool) -> None:
    other = await api.node("node-2")
    reach = fast.reach | {other.id: Reach(available=True, checked_at=NOW, free_bytes=8 * GIB, size_bytes=9 * GIB)}
    await api.records.change(POOLS, fast.id, lambda pool: msgspec.structs.replace(pool, reach=reach))
    assert (await post(api, "volumes", 202, name="a", size_bytes=GIB, pool="fast"))["node"] == "node-2"
    assert (await post(api, "volumes", 202, name="b", size_bytes=GIB, pool="fast", node="node-1"))["node"] == "node-1"
    await a_pool(api, "far")
    refused = await api.http.post("/api/v1/volumes", json={"name": "c", "size_bytes": GIB, "pool": "far"})
    assert set(fields_of(problem_of(refused, 507, "no_room"))) == {"node-1", "node-2"}


async def test_a_volume_from_an_image_is_its_child(api: Api) -> None:
    await api.image()
    made = await post(api, "volumes", 202, name="disk", image="tiny")
    assert (made["size_bytes"], made["backing_digest"]) == (GIB, "d" * 64)
    larger = await post(api, "volumes", 202, name="larger", image="tiny", size_bytes=2 * GIB)
    assert larger["size_bytes"] == 2 * GIB
    small = await api.http.post("/api/v1/volumes", json={"name": "s", "image": "tiny", "size_bytes": GIB // 2})
    assert fields_of(problem_of(small, 422, "invalid_input")) == ["size_bytes"]


async def test_a_volume_is_cloned_where_it_lies(api: Api, node: Node, fast: Pool) -> None:
    await post(api, "volumes", 202, name="data", size_bytes=GIB, pool="fast")
    body = {"name": "copy", "volume": "data"}
    problem_of(await api.http.post("/api/v1/volumes", json=body), 409, "state_conflict")  # it is being made
    source = await settled(api, "data")
    made = await post(api, "volumes", 202, **body, size_bytes=2 * GIB)
    assert (made["task"], made["source_volume_id"], made["node"]) == ("clone", source.id, "node-1")
    assert (made["size_bytes"], made["pool"]) == (2 * GIB, "fast")
    reason = fields_of(problem_of(await api.http.delete("/api/v1/volumes/data"), 409, "conflict"))
    assert reason == ["copy"]
    elsewhere = await api.http.post("/api/v1/volumes", json=body | {"name": "x", "pool": "default"})
    assert fields_of(problem_of(elsewhere, 422, "invalid_input")) == ["pool"]


async def test_a_disk_of_a_running_vm_is_not_cloned(api: Api, node: Node) -> None:
    vm = (await api.vm(node=node, status=MachineStatus.RUNNING)).record
    volume = await a_volume(api, "web-1-0", id=vm.spec.disks[0].volume_id, vm_id=vm.id, with_vm=True)
    refused = problem_of(await api.http.post("/api/v1/volumes", json={"name": "c", "volume": volume.name}), 409,
                         "state_conflict")  # fmt: skip
    assert "stopped" in refused["detail"]
    await see(api, vm.id, MachineStatus.STOPPED)
    snapshot = Snapshot(
        id=api.records.new_id(), name="s", vm_id=vm.id, state=SnapshotState.READY, consistency=Consistency.STOPPED,
        spec=vm.spec, volumes=(volume.id,), created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    await api.records.create(SNAPSHOTS, snapshot)
    made = await post(api, "volumes", 202, name="c", volume="web-1-0", snapshot=snapshot.id)
    assert made["source_snapshot_id"] == snapshot.id


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"image": "tiny", "volume": "data"}, ""),
        ({"size_bytes": GIB, "snapshot": "s"}, ""),
        ({"size_bytes": GIB, "pool": "nothing"}, "pool"),
        ({"size_bytes": GIB, "node": "nothing"}, "node"),
        ({"image": "nothing"}, "image"),
        ({"volume": "nothing"}, "volume"),
        ({"size_bytes": 513}, "size_bytes"),
        ({"size_bytes": GIB, "path": "/etc/shadow"}, "path"),
    ],
)
async def test_what_a_volume_cannot_be(api: Api, body: dict[str, Any], field: str) -> None:
    refused = await api.http.post("/api/v1/volumes", json={"name": "data"} | body)
    fields = fields_of(problem_of(refused, 422, "invalid_input"))
    assert fields in ([field], ["body"] if not field else [field])


async def a_volume(api: Api, name: str = "data", **changes: Any) -> Volume:
    volume = Volume(id=api.records.new_id(), name=name, pool_id=POOL_ID, size_bytes=GIB, created_at=NOW, updated_at=NOW)
    return (await api.records.create(VOLUMES, msgspec.structs.replace(volume, **changes))).record


async def see(api: Api, vm_id: str, status: MachineStatus) -> None:
    def change(vm: Vm) -> Vm:
        assert vm.observed is not None
        return msgspec.structs.replace(vm, observed=msgspec.structs.replace(vm.observed, status=status), task=None)

    await api.records.change(VMS, vm_id, change)


async def test_a_volume_grows_and_never_shrinks(api: Api) -> None:
    await a_volume(api)
    path = "/api/v1/volumes/data"
    small = await api.http.patch(path, json={"size_bytes": GIB // 2})
    assert fields_of(problem_of(small, 422, "invalid_input")) == ["size_bytes"]
    assert (await api.http.patch(path, json={"size_bytes": GIB})).status_code == 200
    grown = await api.http.patch(path, json={"size_bytes": 2 * GIB, "name": "more", "qos": {"iops": 9}})
    assert grown.status_code == 202
    shown = grown.json()
    assert (shown["task"], shown["size_bytes"], shown["name"], shown["qos"]["iops"]) == ("grow", 2 * GIB, "more", 9)
    failed = Problem(code="no_room", message="full", at=NOW)
    await settled(api, "more", problem=failed)
    again = await api.http.patch("/api/v1/volumes/more", json={"size_bytes": 2 * GIB})
    assert (again.status_code, again.json()["task"], again.json()["problem"]) == (202, "grow", None)


async def test_a_volume_that_is_needed_stays(api: Api) -> None:
    vm = (await api.vm()).record
    volume = await a_volume(api, vm_id=vm.id)
    refused = problem_of(await api.http.delete("/api/v1/volumes/data"), 409, "conflict")
    assert "belongs to VM web-1" in refused["detail"]
    snapshot = Snapshot(
        id=api.records.new_id(), name="s", vm_id=vm.id, state=SnapshotState.READY, consistency=Consistency.CRASH,
        spec=vm.spec, volumes=(volume.id,), created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    await api.records.create(SNAPSHOTS, snapshot)
    await settled(api, "data", vm_id="")
    assert fields_of(problem_of(await api.http.delete("/api/v1/volumes/data"), 409, "conflict")) == ["s"]
    await a_volume(api, "free")
    leaving = await api.http.delete("/api/v1/volumes/free")
    assert (leaving.status_code, leaving.json()["state"]) == (202, "deleting")
    assert (await api.http.delete("/api/v1/volumes/free")).status_code == 202
    problem_of(await api.http.patch("/api/v1/volumes/free", json={"name": "x"}), 409, "conflict")


# -- attaching and detaching -------------------------------------------------------------------------------


async def test_a_stopped_vm_gets_and_loses_a_disk(api: Api, node: Node) -> None:
    vm = (await api.vm(node=node)).record
    volume = await a_volume(api)
    answer = await api.http.post("/api/v1/vms/web-1/disks", json={"volume": "data", "boot_order": 3})
    assert answer.status_code == 200
    disk = answer.json()["disks"][1]
    assert (disk["volume_id"], disk["boot_order"], disk["pool_id"]) == (volume.id, 3, "")
    assert volumes(api)["data"].vm_id == vm.id
    again = await api.http.post("/api/v1/vms/web-1/disks", json={"volume": "data"})
    assert (again.status_code, len(again.json()["disks"])) == (200, 2)
    gone = await api.http.delete("/api/v1/vms/web-1/disks/data")
    assert (gone.status_code, len(gone.json()["disks"])) == (200, 1)
    assert volumes(api)["data"].vm_id == ""
    problem_of(await api.http.delete("/api/v1/vms/web-1/disks/data"), 404, "not_found")


async def test_a_running_vm_gets_a_new_disk_as_it_runs(api: Api, node: Node) -> None:
    vm = (await running(api, node)).record
    answer = await api.http.post("/api/v1/vms/web-1/disks", json={"size_bytes": GIB})
    assert (answer.status_code, answer.json()["task"]["kind"]) == (202, "adjust")
    made = volumes(api)["web-1-1"]
    assert (made.vm_id, made.with_vm, made.task) == (vm.id, False, VolumeTask.CREATE)
    now = api.records.find(VMS, vm.id).record
    with pytest.raises(Unavailable, match="web-1-1"):
        drives.check_ready(api.records, now, starting=False)
    await settled(api, "web-1-1")
    drives.check_ready(api.records, now, starting=True)


async def test_a_disk_is_kept_for_its_vm_until_the_machine_let_go(api: Api, node: Node) -> None:
    vm = (await running(api, node)).record
    volume = await a_volume(api, "root", id=vm.spec.disks[0].volume_id, vm_id=vm.id, with_vm=True)
    answer = await api.http.delete(f"/api/v1/vms/web-1/disks/{volume.id}")
    assert (answer.status_code, answer.json()["disks"]) == (202, [])
    kept = volumes(api)["root"]
    assert (kept.vm_id, kept.with_vm) == (vm.id, False)
    problem_of(await api.http.delete("/api/v1/volumes/root"), 409, "conflict")
    problem_of(await api.http.post("/api/v1/vms", json={"name": "b", "image": "tiny", "disks": [{"volume": "root"}]}),
               422, "invalid_input")  # fmt: skip


async def running(api: Api, node: Node) -> Stored[Vm]:
    stored = await api.vm(node=node, status=MachineStatus.RUNNING)
    await api.records.change(VMS, stored.record.id, lambda vm: msgspec.structs.replace(vm, booted=vm.spec))
    return api.records.find(VMS, stored.record.id)


async def test_a_disk_is_attached_where_its_vm_can_reach_it(api: Api, node: Node, fast: Pool) -> None:
    other = await api.node("node-2")
    await api.vm("away", node=other)
    await a_volume(api, pool_id=fast.id, node_id=node.id)
    refused = problem_of(await api.http.post("/api/v1/vms/away/disks", json={"volume": "data"}), 507, "no_room")
    assert refused["reasons"][0]["code"] == "pool.elsewhere"
    new = problem_of(await api.http.post("/api/v1/vms/away/disks", json={"size_bytes": GIB, "pool": "fast"}), 507,
                     "no_room")  # fmt: skip
    assert new["reasons"][0]["code"] == "pool.unknown"
    await api.vm("here", node=node)
    assert (await api.http.post("/api/v1/vms/here/disks", json={"volume": "data"})).status_code == 200
    problem_of(await api.http.post("/api/v1/vms/away/disks", json={"volume": "data"}), 409, "conflict")


async def test_a_disk_of_its_node_alone_is_copied_where_its_vm_goes(api: Api, node: Node, fast: Pool) -> None:
    other = await api.node("node-2")
    reach = fast.reach | {other.id: fast.reach[node.id]}
    await api.records.change(POOLS, fast.id, lambda pool: msgspec.structs.replace(pool, reach=reach))
    vm = (await running(api, node)).record
    disk = msgspec.structs.replace(vm.spec.disks[0], pool_id=fast.id)
    spec = msgspec.structs.replace(vm.spec, disks=(disk,))
    await api.records.change(VMS, vm.id, lambda now: msgspec.structs.replace(now, spec=spec, booted=spec))
    await a_volume(api, "root", id=disk.volume_id, vm_id=vm.id, pool_id=fast.id, node_id=node.id)
    begun = (await api.http.post("/api/v1/migrations", json={"vm": "web-1"})).json()
    (moved,) = begun["disks"]
    assert (moved["volume_id"], moved["from_pool"], moved["to_pool"]) == (disk.volume_id, fast.name, fast.name)
    other_place = api.records.find(VOLUMES, disk.volume_id).record.other
    assert other_place == Place(pool_id=fast.id, node_id=other.id)


async def test_disks_are_planned_and_moved_into_the_pool_that_is_named(api: Api, node: Node, fast: Pool) -> None:
    other = await api.node("node-2")
    reach = fast.reach | {other.id: fast.reach[node.id]}
    await api.records.change(POOLS, fast.id, lambda pool: msgspec.structs.replace(pool, reach=reach))
    vm = (await running(api, node)).record
    volume_id = vm.spec.disks[0].volume_id
    await a_volume(api, "root", id=volume_id, vm_id=vm.id)
    query = {"pool": "fast", "target_node": "node-2", "measure": False}
    planned = (await api.http.get("/api/v1/vms/web-1/migration-plan", params=query)).json()
    here, there = (one for one in planned["nodes"] if one["can"])
    assert here["is_here"]
    assert planned["target_node"] == there["node"] == "node-2"
    assert [move["to_pool"] for move in there["disks"]] == ["fast"]
    assert there["start"]["pool"] == "fast"
    query = {"disk_pool": "root", "measure": False}
    refused = problem_of(await api.http.get("/api/v1/vms/web-1/migration-plan", params=query), 422, "invalid_input")
    assert refused["reasons"][0]["subject"] == "disk_pool"
    query = {"disk_pool": "root=fast", "measure": False}
    planned = (await api.http.get("/api/v1/vms/web-1/migration-plan", params=query)).json()
    assert planned["target_node"] == here["node"]
    assert [move["volume_id"] for one in planned["nodes"] for move in one["disks"]] == [volume_id] * 2
    begun = (await api.http.post("/api/v1/migrations", json=there["start"])).json()
    assert [move["to_pool"] for move in begun["disks"]] == ["fast"]
    assert begun["predicted"]["disk_bytes"] > 0


async def test_nothing_is_changed_while_a_migration_holds_it(api: Api, node: Node) -> None:
    vm = (await api.vm(node=node, migration_id=api.records.new_id())).record
    await a_volume(api, "mine", vm_id=vm.id, id=vm.spec.disks[0].volume_id)
    await a_volume(api)
    for refused in (
        await api.http.post("/api/v1/vms/web-1/disks", json={"volume": "data"}),
        await api.http.delete("/api/v1/vms/web-1/disks/mine"),
        await api.http.patch("/api/v1/volumes/mine", json={"size_bytes": 2 * GIB}),
    ):
        problem_of(refused, 409, "busy")
    assert (await api.http.patch("/api/v1/volumes/mine", json={"description": "x"})).status_code == 200


async def test_a_machine_grows_its_disk_as_it_runs(api: Api, node: Node) -> None:
    vm = (await running(api, node)).record
    await a_volume(api, "root", id=vm.spec.disks[0].volume_id, vm_id=vm.id)
    answer = await api.http.patch("/api/v1/volumes/root", json={"size_bytes": 2 * GIB, "qos": {"iops": 3}})
    assert answer.status_code == 202
    now = api.records.find(VMS, vm.id).record
    assert now.task is not None
    assert now.task.kind is TaskKind.ADJUST
    assert (now.spec.disks[0].size_bytes, now.spec.disks[0].qos.iops) == (2 * GIB, 3)
    volume = volumes(api)["root"]
    assert decide.next_step(volume, now) is None  # the machine does it
    grown = msgspec.structs.replace(now, booted=now.spec, task=None)
    assert decide.next_step(volume, grown) == decide.Settle()


async def test_a_vm_being_started_is_not_regrown(api: Api, node: Node) -> None:
    vm = (await api.vm(node=node, task=Task(id="t", kind=TaskKind.START, requested_at=NOW))).record
    await a_volume(api, "root", id=vm.spec.disks[0].volume_id, vm_id=vm.id)
    problem_of(await api.http.patch("/api/v1/volumes/root", json={"size_bytes": 2 * GIB}), 409, "busy")


async def test_disks_from_before_volumes_had_records_get_theirs_once(api: Api, node: Node) -> None:
    vm = (await api.vm("old", node=node)).record
    for _ in range(2):
        await adopt_disks(api.records, SystemClock(), POOL_ID)
    (made,) = volumes(api).values()
    assert (made.name, made.id, made.vm_id, made.with_vm) == ("old-0", vm.spec.disks[0].volume_id, vm.id, True)
    assert (made.pool_id, made.size_bytes, made.task) == (POOL_ID, GIB, None)


# -- decisions ---------------------------------------------------------------------------------------------


def volume(**changes: Any) -> Volume:
    made = Volume(id="v", name="data", pool_id="p", size_bytes=GIB, created_at=NOW, updated_at=NOW)
    return msgspec.structs.replace(made, **changes)


def vm_with(status: MachineStatus, *, spec: bool = False, booted: bool = False, **changes: Any) -> Vm:
    from novacron.model.machine import MachineReport
    from novacron.model.vm import Desired, VmSpec

    disk = Disk(volume_id="v", size_bytes=GIB)
    empty = VmSpec(image_id="i")
    made = Vm(
        id="m",
        name="web",
        spec=msgspec.structs.replace(empty, disks=(disk,)) if spec else empty,
        booted=msgspec.structs.replace(empty, disks=(disk,)) if booted else empty,
        desired=Desired.RUNNING,
        observed=MachineReport(vm_id="m", generation=1, status=status, since=NOW),
        created_at=NOW,
        updated_at=NOW,
    )
    return msgspec.structs.replace(made, **changes)


RUNNING, STOPPED = MachineStatus.RUNNING, MachineStatus.STOPPED
BUSY = Task(id="t", kind=TaskKind.ADJUST, requested_at=NOW)
WRONG = Problem(code="x", message="x", at=NOW)


@pytest.mark.parametrize(
    ("vm", "released"),
    [
        (None, True),
        (vm_with(STOPPED), True),
        (vm_with(STOPPED, spec=True), False),
        (vm_with(STOPPED, task=BUSY), False),
        (vm_with(STOPPED, migration_id="g"), False),
        (vm_with(RUNNING), True),
        (vm_with(RUNNING, booted=True), False),
        (vm_with(RUNNING, problem=WRONG), False),
        (vm_with(RUNNING, task=BUSY), False),
        (vm_with(STOPPED, booted=True), True),
        (vm_with(MachineStatus.UNKNOWN, booted=True), False),
    ],
)
def test_a_volume_is_released_when_no_machine_has_it(vm: Vm | None, released: bool) -> None:
    step = decide.next_step(volume(vm_id="m"), vm)
    assert step == (decide.Release() if released else None)


@pytest.mark.parametrize(
    ("task", "vm", "step"),
    [
        (VolumeTask.CREATE, None, decide.Make()),
        (VolumeTask.CLONE, None, decide.Make()),
        (VolumeTask.DELETE, None, decide.Delete()),
        (VolumeTask.GROW, None, decide.Grow()),
        (VolumeTask.GROW, vm_with(STOPPED, spec=True), decide.Grow()),
        (VolumeTask.GROW, vm_with(RUNNING, spec=True, booted=True), decide.Settle()),
        (VolumeTask.GROW, vm_with(RUNNING, spec=True), None),
        (VolumeTask.GROW, vm_with(STOPPED, spec=True, migration_id="g"), None),
        (None, None, None),
    ],
)
def test_what_a_volume_needs_next(task: VolumeTask | None, vm: Vm | None, step: decide.Step | None) -> None:
    assert decide.next_step(volume(task=task), vm) == step


def test_who_works_on_a_volume() -> None:
    def a_node(name: str, state: NodeState = NodeState.UP) -> Node:
        return Node(id=name, name=name, state=state, created_at=NOW, updated_at=NOW, state_since=NOW)

    nodes = [a_node("c"), a_node("b"), a_node("a", NodeState.DOWN), a_node("d")]
    found = Reach(available=True, checked_at=NOW)
    reach = dict.fromkeys("abc", found) | {"d": Reach(available=False, checked_at=NOW)}
    pool = Pool(id="p", name="p", driver=PoolDriver.NFS, created_at=NOW, updated_at=NOW, reach=reach)
    assert decide.doers(volume(), None, pool, nodes) == ["b", "c"]
    assert decide.doers(volume(), vm_with(STOPPED, node_id="c"), pool, nodes) == ["c", "b"]
    assert decide.doers(volume(node_id="d"), None, pool, nodes) == ["d"]


def test_a_refusal_becomes_the_problem() -> None:
    later = NOW + datetime.timedelta(seconds=1)
    refused = decide.failed(volume(task=VolumeTask.CREATE), VolumeTask.CREATE, NoRoom("the pool is full"), later)
    assert refused is not None
    assert refused.problem is not None
    assert (refused.problem.code, refused.problem.message) == ("no_room", "cannot create it: the pool is full")
    assert state_of(refused) is VolumeState.ERROR
    assert decide.failed(volume(task=VolumeTask.DELETE), VolumeTask.CREATE, NoRoom("x"), later) is None
    assert decide.done(volume(task=VolumeTask.DELETE), VolumeTask.CREATE, 0, later) is None
