"""Snapshots and schedules over the API: what is recorded, what is refused and why, how lists and trees are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.control.snapshots import decide, timing
from novacron.control.store.kinds import IMAGES, SNAPSHOTS, VMS
from novacron.control.store.shelf import Stored
from novacron.model.machine import Disk, MachineReport, MachineStatus, Nic
from novacron.model.snapshot import Consistency, Schedule, Snapshot, SnapshotState
from novacron.model.vm import Task, TaskKind, Vm
from novacron.wire.rest import snapshots as wire
from novacron.wire.rest.common import PageOf
from novacron.wire.snapshot import SnapshotTaken
from tests.control.api import NOW, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio
RUNNING = MachineStatus.RUNNING


async def _vm(api: Api, name: str = "web-1", status: MachineStatus = RUNNING, **changed: Any) -> Stored[Vm]:
    node = await api.node(f"node-of-{name}")
    return await api.vm(name, node=node, status=status, **changed)


async def _take(api: Api, vm: str = "web-1", **body: Any) -> Any:
    return await api.http.post(f"/api/v1/vms/{vm}/snapshots", json=body)


async def _ready(api: Api, snapshot_id: str) -> Snapshot:
    """As the worker would write it."""
    stored = api.records.find(SNAPSHOTS, snapshot_id)
    vm = api.records.find(VMS, stored.record.vm_id)
    answer = SnapshotTaken(consistency=stored.record.consistency, memory_bytes=0)
    snapshot, free = decide.taken(stored.record, vm.record, answer, NOW)
    await api.records.change(SNAPSHOTS, snapshot_id, lambda _: snapshot)
    await api.records.change(VMS, free.id, lambda _: free)
    return snapshot


async def _made(api: Api, **body: Any) -> Snapshot:
    answer = await _take(api, **body)
    assert answer.status_code == 202, answer.text
    return await _ready(api, answer.json()["id"])


async def test_a_snapshot_and_its_vm_are_written_together(api: Api) -> None:
    stored = await _vm(api)
    answer = await _take(api, name="before", memory=True, labels={"why": "test"}, description="x")
    assert answer.status_code == 202
    made = wire.Snapshot.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/api/v1/snapshots/{made.id}"
    assert (made.state, made.consistency, made.vm_name) == ("creating", "memory", "web-1")
    assert made.volumes == [disk.volume_id for disk in stored.record.spec.disks]
    vm = api.records.find(VMS, "web-1")
    assert vm.record.task is not None
    assert (vm.record.task.kind, vm.modified) == (TaskKind.SNAPSHOT, made.revision)
    assert (await api.http.get("/api/v1/vms/web-1")).json()["task"]["kind"] == "snapshot"
    problem_of(await _take(api), 409, "busy")
    problem_of(await api.http.delete(f"/api/v1/snapshots/{made.id}"), 409, "busy")


async def test_names_are_given_and_unique_within_a_vm(api: Api) -> None:
    await _vm(api)
    await _vm(api, "web-2")
    first = await _made(api)
    assert first.name
    second = await _made(api, name="mine")
    assert second.parent_id == first.id
    problem_of(await _take(api, name="mine"), 409, "conflict")
    assert (await _take(api, "web-2", name="mine")).status_code == 202
    changed = await api.http.patch(f"/api/v1/snapshots/{second.id}", json={"name": "yours", "labels": {"a": "b"}})
    assert (changed.json()["name"], changed.json()["labels"]) == ("yours", {"a": "b"})
    problem_of(await api.http.patch(f"/api/v1/snapshots/{first.id}", json={"name": "yours"}), 409, "conflict")
    stale = await api.http.patch(f"/api/v1/snapshots/{first.id}", json={"name": "z"}, headers={"if-match": '"1"'})
    problem_of(stale, 412, "precondition_failed")


async def test_lists_show_trees_of_one_vm(api: Api) -> None:
    await _vm(api)
    await _vm(api, "web-2")
    first = await _made(api, name="one", labels={"keep": "yes"})
    second = await _made(api, name="two")
    await _take(api, "web-2", name="other")

    async def listed(**params: str) -> list[str]:
        answer = await api.http.get("/api/v1/snapshots", params=params)
        return [one.name for one in PageOf[wire.Snapshot].model_validate_json(answer.content).items]

    assert await listed() == ["one", "two", "other"]
    assert await listed(vm="web-1") == ["one", "two"]
    assert await listed(vm="web-1", name="two") == ["two"]
    assert await listed(label="keep") == ["one"]
    assert await listed(state="creating") == ["other"]
    problem = problem_of(await api.http.get("/api/v1/snapshots", params={"vm": "none"}), 422, "invalid_input")
    assert fields_of(problem) == ["vm"]
    shown = (await api.http.get(f"/api/v1/snapshots/{second.id}")).json()
    assert (shown["parent_id"], shown["current"]) == (first.id, True)
    assert (await api.http.get(f"/api/v1/snapshots/{first.id}")).json()["current"] is False


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (MachineStatus.STOPPED, {"memory": True}, (409, "state_conflict")),
        (MachineStatus.STALLED, {}, (409, "state_conflict")),
        (RUNNING, {"quiesce": True}, (422, "unsupported")),
        (RUNNING, {"quiesce": True, "memory": True}, (422, "invalid_input")),
        (RUNNING, {"name": "no spaces"}, (422, "invalid_input")),
    ],
)
async def test_what_cannot_be_is_refused(
    api: Api, status: MachineStatus, body: dict[str, Any], code: tuple[int, str]
) -> None:
    await _vm(api, status=status)
    problem = problem_of(await _take(api, **body), *code)
    assert problem["reasons"][0]["remedy"]
    assert api.records.all(SNAPSHOTS) == []
    assert api.records.find(VMS, "web-1").record.task is None


async def test_a_vm_that_others_hold_is_busy(api: Api) -> None:
    stored = await _vm(api)
    snapshot = await _made(api)
    task = Task(id="t", kind=TaskKind.STOP, requested_at=NOW)
    paths = [("POST", f"/api/v1/snapshots/{snapshot.id}/revert"), ("DELETE", f"/api/v1/snapshots/{snapshot.id}")]
    for change in ({"task": task}, {"migration_id": "m"}, {"node_lost": True}):
        await api.records.change(VMS, stored.record.id, lambda vm, change=change: msgspec.structs.replace(vm, **change))  # type: ignore[misc]
        for method, path in [*paths, ("POST", "/api/v1/vms/web-1/snapshots")]:
            assert (await api.http.request(method, path)).status_code == 409
        undone = {"task": None, "migration_id": "", "node_lost": False}
        await api.records.change(VMS, stored.record.id, lambda vm, undone=undone: msgspec.structs.replace(vm, **undone))  # type: ignore[misc]
    assert (await api.http.post(paths[0][1])).status_code == 202


async def test_going_back_needs_the_same_disks_and_for_memory_the_same_cards(api: Api) -> None:
    stored = await _vm(api)
    snapshot = await _made(api, memory=True)
    disk = Disk(volume_id=api.records.new_id(), size_bytes=1)
    nic = Nic(id=api.records.new_id(), mac="52:54:00:00:00:09")
    spec = msgspec.structs.replace(stored.record.spec, disks=(disk,), nics=(nic,))
    await api.records.change(VMS, stored.record.id, lambda vm: msgspec.structs.replace(vm, spec=spec))
    problem = problem_of(await api.http.post(f"/api/v1/snapshots/{snapshot.id}/revert"), 409, "conflict")
    assert {reason["code"] for reason in problem["reasons"]} == {
        "snapshot.volume_detached", "snapshot.volume_attached", "snapshot.card_attached",
    }  # fmt: skip
    assert all(reason["remedy"] for reason in problem["reasons"])


async def test_a_vm_that_runs_again_needs_room(api: Api) -> None:
    stored = await _vm(api, status=MachineStatus.STOPPED)
    snapshot = await _made(api)
    big = msgspec.structs.replace(snapshot.spec, memory_mib=1 << 20)
    await api.records.change(SNAPSHOTS, snapshot.id, lambda one: msgspec.structs.replace(one, spec=big))
    path = f"/api/v1/snapshots/{snapshot.id}/revert"
    problem_of(await api.http.post(path, json={"start": True}), 507, "no_room")
    assert (await api.http.post(path)).status_code == 202
    assert api.records.find(VMS, stored.record.id).record.task.kind is TaskKind.REVERT  # type: ignore[union-attr]


async def test_an_export_is_an_image_that_waits(api: Api) -> None:
    await _vm(api)
    await api.image("taken")
    snapshot = await _made(api, name="one")
    path = f"/api/v1/snapshots/{snapshot.id}/export"
    problem_of(await api.http.post(path, json={"image": "taken"}), 409, "name_taken")
    wrong = await api.http.post(path, json={"image": "new", "volume_id": "other"})
    assert fields_of(problem_of(wrong, 422, "invalid_input")) == ["volume_id"]
    answer = await api.http.post(path, json={"image": "new"}, headers={"idempotency-key": "k"})
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    again = await api.http.post(path, json={"image": "new"}, headers={"idempotency-key": "k"})
    assert again.json()["id"] == answer.json()["id"]
    shown = (await api.http.get(f"/api/v1/snapshots/{snapshot.id}")).json()
    assert (shown["state"], shown["image_id"]) == ("exporting", answer.json()["id"])
    assert api.records.find(IMAGES, "new").record.id == answer.json()["id"]
    problem_of(await api.http.delete(f"/api/v1/snapshots/{snapshot.id}"), 409, "busy")


async def test_an_images_file_is_streamed_whole_or_in_part(api: Api, tmp_path: Path) -> None:
    await api.image("golden")
    path = "/api/v1/images/golden/files/disk"
    problem_of(await api.http.get(path), 404, "not_found")  # another pool holds it
    folder = next(one for one in tmp_path.rglob("images") if one.is_dir())
    (folder / ("d" * 64)).write_bytes(bytes(range(250)) * 4)
    whole = await api.http.get(path)
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, bytes(range(250)) * 4, f'"{"d" * 64}"')
    for asked, status, length in (
        ("bytes=990-", 206, 10),
        ("bytes=0-9", 206, 10),
        ("bytes=2000-", 200, 1000),
        ("x", 200, 1000),
    ):
        part = await api.http.get(path, headers={"range": asked})
        assert (part.status_code, len(part.content)) == (status, length), asked
    problem_of(await api.http.get("/api/v1/images/golden/files/kernel"), 404, "not_found")
    problem_of(await api.client(None).get(path), 401, "unauthenticated")


async def test_every_right_is_one_of_its_own(api: Api) -> None:
    await _vm(api)
    problem = problem_of(await api.client(None).post("/api/v1/vms/web-1/snapshots"), 401, "unauthenticated")
    assert problem["detail"]


async def test_schedules(api: Api) -> None:
    body = {"name": "hourly", "selector": {"tier": "db"}, "every_s": 3600, "keep": 24}
    made = wire.Schedule.model_validate_json((await api.http.post("/api/v1/schedules", json=body)).content)
    assert (made.quiesce, made.memory, made.paused, made.last_at) == (True, False, False, None)
    assert made.next_at is not None
    assert (made.next_at - made.created_at).total_seconds() == 3600
    problem_of(await api.http.post("/api/v1/schedules", json=body), 409, "name_taken")
    for wrong in ({"every_s": 5}, {"keep": 0}, {"selector": {}}):
        problem = problem_of(await api.http.post("/api/v1/schedules", json=body | wrong), 422, "invalid_input")
        assert fields_of(problem) == list(wrong)
    changed = await api.http.patch("/api/v1/schedules/hourly", json={"paused": True, "keep": 3})
    assert (changed.json()["next_at"], changed.json()["keep"]) == (None, 3)
    listed = (await api.http.get("/api/v1/schedules")).json()["items"]
    assert [one["name"] for one in listed] == ["hourly"]
    assert (await api.http.delete("/api/v1/schedules/hourly")).status_code == 204
    problem_of(await api.http.get("/api/v1/schedules/hourly"), 404, "not_found")


# -- decisions -----------------------------------------------------------------------------------------------


def _snapshot(number: int, **changed: Any) -> Snapshot:
    made = Snapshot(
        id=f"s{number}", name=f"s{number}", vm_id="v", state=SnapshotState.READY, consistency=Consistency.CRASH,
        spec=VM.spec, volumes=(), created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed)


VM = msgspec.convert(
    {
        "id": "v", "name": "v", "spec": {"image_id": "i"}, "desired": "running", "node_id": "n",
        "created_at": NOW, "updated_at": NOW, "labels": {"tier": "db"},
    },
    Vm,
)  # fmt: skip


def test_children_of_a_deleted_snapshot_are_its_parents() -> None:
    deleted = _snapshot(2, parent_id="s1")
    held = msgspec.structs.replace(VM, snapshot_id="s2")
    children, vm = decide.gone(deleted, held, [_snapshot(3, parent_id="s2"), _snapshot(4, parent_id="s2")], NOW)
    assert [one.parent_id for one in children] == ["s1", "s1"]
    assert vm.snapshot_id == "s1"


def test_a_card_that_stayed_keeps_the_addresses_it_has_now() -> None:
    then = Nic(id="n1", mac="52:54:00:00:00:01", addresses=("10.0.0.1",))
    now = msgspec.structs.replace(then, addresses=("10.0.0.9",), security_groups=("g",))
    kept = _snapshot(1, consistency=Consistency.MEMORY, spec=msgspec.structs.replace(VM.spec, nics=(then,)))
    vm = msgspec.structs.replace(VM, spec=msgspec.structs.replace(VM.spec, nics=(now,)))
    assert decide.spec_after(vm, kept).nics == (now,)


def test_a_revert_that_ends_a_machine_leaves_it_wanted_off() -> None:
    report = MachineReport(vm_id="v", generation=1, status=MachineStatus.STOPPED, since=NOW)
    _, vm = decide.reverted(_snapshot(1, task_id="t"), VM, report, NOW)
    assert (vm.desired.value, vm.task, vm.snapshot_id) == ("stopped", None, "s1")
    _, vm = decide.reverted(_snapshot(1, task_id="t", start=True), VM, report, NOW)
    assert vm.task is not None
    assert (vm.desired.value, vm.task.kind) == ("running", TaskKind.START)


@pytest.mark.parametrize(
    ("hours", "taken_at", "takes"),
    [
        (0.5, [], False),
        (1.0, [], True),
        (1.5, [1.2], False),
        (2.1, [1.2], True),
        (50, [1.2], True),
        (50.9, [50], False),
    ],
)
def test_each_slot_has_one_snapshot(hours: float, taken_at: list[float], takes: bool) -> None:
    schedule = Schedule(id="h", name="h", selector={"tier": "db"}, every_s=3600, keep=2, created_at=NOW, updated_at=NOW)

    def at(count: float) -> Any:
        return NOW + timing.datetime.timedelta(hours=count)

    mine = [_snapshot(number, created_at=at(when), schedule_id="h") for number, when in enumerate(taken_at)]
    assert timing.due(schedule, [VM], mine, at(hours)).take == (("v",) if takes else ())


def test_only_its_own_and_only_the_oldest_go() -> None:
    schedule = Schedule(id="h", name="h", selector={"tier": ""}, every_s=60, keep=2, created_at=NOW, updated_at=NOW)

    def at(minutes: int, number: int, **changed: Any) -> Snapshot:
        return _snapshot(number, created_at=NOW + timing.datetime.timedelta(minutes=minutes), **changed)

    snapshots = [at(number, number, schedule_id="h") for number in (1, 2, 3, 4)]
    snapshots += [at(1, 9), at(2, 8, schedule_id="other")]
    snapshots += [at(3, 7, schedule_id="h", state=SnapshotState.ERROR)]
    due = timing.due(schedule, [VM], snapshots, NOW + timing.datetime.timedelta(minutes=4, seconds=30))
    assert due == timing.Due(take=(), delete=("s7", "s1", "s2"))
    unselected = msgspec.structs.replace(VM, labels={})
    assert timing.due(schedule, [unselected], snapshots, NOW + timing.datetime.timedelta(minutes=9)) == timing.Due()
