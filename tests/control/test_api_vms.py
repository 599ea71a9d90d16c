"""VMs over the API: making, reading, changing, acting; what is refused and why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from novacron.control.store.kinds import VMS
from novacron.model.image import FileRole, ImageFile, ImageState
from novacron.model.machine import MachineStatus
from novacron.model.vm import Desired, TaskKind
from novacron.wire.rest import vms as wire
from novacron.wire.rest.common import PageOf
from tests.control.api import GIB, NOW, Api, another, fields_of, problem_of

pytestmark = pytest.mark.anyio

ASKED = {"name": "web-1", "image": "tiny"}


async def test_a_created_vm_is_placed_recorded_and_under_way(api: Api) -> None:
    node, image = await api.node(), await api.image()
    answer = await api.http.post(
        "/api/v1/vms", json={**ASKED, "labels": {"tier": "web"}, "disks": [{"size_bytes": GIB}]}
    )
    assert answer.status_code == 202
    vm = wire.Vm.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/api/v1/vms/{vm.id}"
    assert answer.headers["etag"] == f'"{vm.revision}"'
    assert (vm.state, vm.desired, vm.node, vm.image_id) == ("creating", "running", node.name, image.id)
    assert vm.task is not None
    assert (vm.task.kind, vm.task.requested_by) == (TaskKind.CREATE, "admin")
    assert [disk.size_bytes for disk in vm.disks] == [GIB, GIB]
    assert vm.disks[0].backing_digest == "d" * 64
    assert vm.nics[0].mac.startswith("52:4e:43:")
    stored = api.records.find(VMS, "web-1").record
    assert (stored.generation, stored.isolation_slot) == (1, 1)


async def test_a_vm_that_is_to_stay_off_is_made_without_a_task(api: Api) -> None:
    await api.node()
    await api.image()
    answer = await api.http.post("/api/v1/vms", json={**ASKED, "desired": "stopped"})
    assert answer.status_code == 201
    assert (answer.json()["state"], answer.json()["task"]) == ("stopped", None)


async def test_reads_are_conditional(api: Api) -> None:
    stored = await api.vm()
    for ref in (stored.record.id, "web-1"):
        answer = await api.http.get(f"/api/v1/vms/{ref}")
        assert wire.Vm.model_validate_json(answer.content).revision == stored.modified
        again = await api.http.get(f"/api/v1/vms/{ref}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = await api.http.get(f"/api/v1/vms/{ref}", headers={"if-none-match": '"0"'})
        assert other.status_code == 200


async def test_the_view_has_every_shape_the_words_allow(api: Api) -> None:
    node = await api.node()
    for number, status in enumerate(MachineStatus):
        await api.vm(f"vm-{number}", node=node, status=status)
    answer = await api.http.get("/api/v1/vms")
    page = PageOf[wire.Vm].model_validate_json(answer.content)
    assert {vm.name for vm in page.items} == {f"vm-{number}" for number in range(len(MachineStatus))}
    assert page.next_cursor is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "a,process=x"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "../etc"}, "name"),
        ({"name": "-rf"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a" * 10_000}, "name"),
        ({"name": "web\n"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "0190b36e-0000-7000-8000-00000000aaaa"}, "name"),
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"image": "../tiny"}, "image"),
        ({"image": "unknown"}, "image"),
        ({"node": "unknown"}, "node"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 513}, "vcpus"),
        ({"vcpus": 1.5}, "vcpus"),
        ({"vcpus": 10**40}, "vcpus"),
        ({"memory_mib": 15}, "memory_mib"),
        ({"memory_mib": (4 << 20) + 1}, "memory_mib"),
        ({"root_disk_bytes": GIB - 512}, "root_disk_bytes"),
        ({"root_disk_bytes": GIB + 1}, "root_disk_bytes"),
        ({"disks": [{"size_bytes": 1}]}, "disks.0.size_bytes"),
        ({"disks": [{"size_bytes": GIB}] * 17}, "disks"),
        ({"disks": [{"path": "/etc/shadow", "size_bytes": GIB}]}, "disks.0.path"),
        ({"nics": [{"bridge": "br0"}]}, "nics.0"),
        ({"nics": [{"network": "bridge"}]}, "nics.0"),
        ({"nics": [{"network": "bridge", "bridge": "br0,script=/x"}]}, "nics.0.bridge"),
        ({"nics": [{"network": "bridge", "bridge": "br0", "forwards": [{"guest_port": 1}]}]}, "nics.0"),
        ({"nics": [{"mac": "01:00:00:00:00:00"}]}, "nics.0.mac"),
        ({"nics": [{"mac": "52:4e:43:00:00:01"}] * 2}, "nics.1.mac"),
        ({"nics": [{"forwards": [{"guest_port": 0}]}]}, "nics.0.forwards.0.guest_port"),
        ({"nics": [{"forwards": [{"guest_port": 65536}]}]}, "nics.0.forwards.0.guest_port"),
        ({"nics": [{}] * 9}, "nics"),
        ({"cloud_init": {"user_data": "x" * 65537}}, "cloud_init.user_data"),
        ({"cloud_init": {"user_data": "a\0"}}, "cloud_init.user_data"),
        ({"kernel_cmdline": "a\nb"}, "kernel_cmdline"),
        ({"kernel_cmdline": "quiet"}, "kernel_cmdline"),
        ({"labels": {"a b": "x"}}, "labels.a b.[key]"),
        ({"labels": {"a": "x\n"}}, "labels.a"),
        ({"labels": {f"k{n}": "" for n in range(65)}}, "labels"),
        ({"description": "a\x1b[31m"}, "description"),
        ({"description": "a" * 1025}, "description"),
        ({"desired": "deleted"}, "desired"),
        ({"type": "container"}, "type"),
        ({"machine": "pc"}, "machine"),
        ({"qemu_args": ["-monitor"]}, "qemu_args"),
        ({"generation": 9}, "generation"),
        ({"isolation_slot": 1}, "isolation_slot"),
        ({"x" * 10_000 + "\0": 1}, "x" * 200 + "…"),
    ],
)
async def test_a_wrong_field_is_named(api: Api, change: dict[str, Any], field: str) -> None:
    await api.node()
    await api.image()
    answer = await api.http.post("/api/v1/vms", json={**ASKED, **change})
    assert field in fields_of(problem_of(answer, 422, "invalid_input"))
    assert api.records.all(VMS) == []
    assert len(answer.content) < 8192


async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    answer = await api.http.post("/api/v1/vms", json={"name": "Web", "vcpus": 0, "memory": 1})
    problem = problem_of(answer, 422, "invalid_input")
    assert sorted(fields_of(problem)) == ["image", "memory", "name", "vcpus"]
    assert "vcpus: must be at least 1" in problem["detail"] or "vcpus" in fields_of(problem)
    assert all(reason["message"] for reason in problem["reasons"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b"", 422, "invalid_input"),
        (b"null", 422, "invalid_input"),
        (b"[]", 422, "invalid_input"),
        (b'"text"', 422, "invalid_input"),
        (b'{"name": "\\ud800", "image": "tiny"}', 422, "invalid_input"),
        (b'{"name": "a", "image": "tiny", "vcpus": NaN}', 422, "invalid_input"),
        (b" " * (1 << 20) + b"{}", 413, "too_large"),
    ],
)
async def test_a_body_that_is_no_request(api: Api, body: bytes, status: int, code: str) -> None:
    answer = await api.http.post("/api/v1/vms", content=body, headers={"content-type": "application/json"})
    problem_of(answer, status, code)


async def test_a_body_that_grows_past_its_bound_is_cut_off(api: Api) -> None:
    sent = 0

    async def pieces() -> Any:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 16
            yield b" " * (1 << 16)

    answer = await api.http.post("/api/v1/vms", content=pieces(), headers={"content-type": "application/json"})
    problem_of(answer, 413, "too_large")
    assert sent <= (1 << 20) + (1 << 18)


async def test_a_vm_that_fits_nowhere_is_refused_with_a_reason_for_each_node(api: Api) -> None:
    await api.node("small", memory_mib=1024)
    await api.node("closed", cordoned=True)
    await api.image()
    answer = await api.http.post("/api/v1/vms", json={**ASKED, "memory_mib": 4096})
    problem = problem_of(answer, 507, "no_room")
    assert {reason["subject"]: reason["code"] for reason in problem["reasons"]} == {
        "small": "memory.short",
        "closed": "node.cordoned",
    }
    assert "4096 MiB" in problem["detail"]


async def test_without_nodes_there_is_no_room(api: Api) -> None:
    await api.image()
    problem = problem_of(await api.http.post("/api/v1/vms", json=ASKED), 507, "no_room")
    assert "there is no node" in problem["detail"]


async def test_fifty_at_once_never_promise_the_same_room_twice(api: Api) -> None:
    await api.node(memory_mib=512 + 10 * 256)
    await api.image()

    async def make(number: int) -> int:
        body = {"name": f"vm-{number}", "image": "tiny", "memory_mib": 256}
        return (await api.http.post("/api/v1/vms", json=body)).status_code

    statuses = await asyncio.gather(*(make(number) for number in range(50)))
    assert statuses.count(202) == 10
    assert statuses.count(507) == 40
    slots = [stored.record.isolation_slot for stored in api.records.all(VMS)]
    assert sorted(slots) == list(range(1, 11))


@pytest.mark.parametrize(("places", "status", "slots"), [(2, 202, [1, 2]), (1, 507, [1])])
async def test_a_promise_made_by_another_server_meanwhile_counts(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int, status: int, slots: list[int]
) -> None:
    await api.node(memory_mib=512 + places * 256)
    await api.image()
    ours, theirs = ({"name": name, "image": "tiny", "memory_mib": 256} for name in ("ours", "theirs"))
    async with another(api, tmp_path) as other:
        commit = api.records.commit

        async def after_theirs(*writes: Any, **more: Any) -> int:
            monkeypatch.undo()
            assert (await other.http.post("/api/v1/vms", json=theirs)).status_code == 202
            return await commit(*writes, **more)

        monkeypatch.setattr(api.records, "commit", after_theirs)
        assert (await api.http.post("/api/v1/vms", json=ours)).status_code == status
    assert sorted(stored.record.isolation_slot for stored in api.records.all(VMS)) == slots


async def test_names_are_unique(api: Api) -> None:
    await api.node()
    await api.image()
    await api.vm("web-1")
    problem_of(await api.http.post("/api/v1/vms", json=ASKED), 409, "name_taken")
    await api.vm("web-2")
    problem_of(await api.http.patch("/api/v1/vms/web-2", json={"name": "web-1"}), 409, "name_taken")


async def test_a_mac_belongs_to_one_vm(api: Api) -> None:
    await api.node()
    await api.image()
    nics = {"nics": [{"mac": "52:4e:43:00:00:01"}]}
    assert (await api.http.post("/api/v1/vms", json={**ASKED, **nics})).status_code == 202
    again = await api.http.post("/api/v1/vms", json={"name": "web-2", "image": "tiny", **nics})
    assert problem_of(again, 409, "conflict")["reasons"][0]["subject"] == "web-1"


async def test_an_image_must_be_ready_and_fit(api: Api) -> None:
    await api.node()
    await api.image("half", state=ImageState.PENDING)
    problem_of(await api.http.post("/api/v1/vms", json={"name": "a", "image": "half"}), 409, "state_conflict")
    kernel = ImageFile(role=FileRole.KERNEL, digest="e" * 64, size_bytes=1)
    await api.image("kernel", files=(kernel,))
    body = {"name": "a", "image": "kernel", "root_disk_bytes": GIB}
    assert fields_of(problem_of(await api.http.post("/api/v1/vms", json=body), 422, "invalid_input")) == [
        "root_disk_bytes"
    ]
    body = {"name": "a", "image": "kernel", "kernel_cmdline": "quiet"}
    assert (await api.http.post("/api/v1/vms", json=body)).json()["disks"] == []


@pytest.mark.parametrize("ref", ["nobody", "0190b36e-0000-7000-8000-00000000aaaa"])
async def test_unknown_vms_are_404_everywhere(api: Api, ref: str) -> None:
    for verb in ("start", "stop", "restart", "pause", "resume"):
        problem_of(await api.http.post(f"/api/v1/vms/{ref}/{verb}"), 404, "not_found")
    problem_of(await api.http.get(f"/api/v1/vms/{ref}"), 404, "not_found")
    problem_of(await api.http.get(f"/api/v1/vms/{ref}/console-log"), 404, "not_found")
    problem_of(await api.http.patch(f"/api/v1/vms/{ref}", json={}), 404, "not_found")
    problem_of(await api.http.delete(f"/api/v1/vms/{ref}"), 404, "not_found")


async def test_update_changes_what_is_named_and_no_more(api: Api) -> None:
    stored = await api.vm(labels={"a": "1"})
    answer = await api.http.patch("/api/v1/vms/web-1", json={"memory_mib": 1024, "labels": {"b": "2"}})
    vm = wire.Vm.model_validate_json(answer.content)
    assert (vm.memory_mib, vm.vcpus, vm.labels, vm.name) == (1024, 1, {"b": "2"}, "web-1")
    assert vm.revision > stored.modified
    same = await api.http.patch("/api/v1/vms/web-1", json={"memory_mib": 1024})
    assert same.json()["revision"] == vm.revision
    renamed = await api.http.patch("/api/v1/vms/web-1", json={"name": "web-9"})
    assert (await api.http.get("/api/v1/vms/web-9")).json()["id"] == renamed.json()["id"]
    problem_of(await api.http.get("/api/v1/vms/web-1"), 404, "not_found")


async def test_a_stale_if_match_changes_nothing(api: Api) -> None:
    stored = await api.vm()
    mine = f'"{stored.modified}"'
    await api.http.patch("/api/v1/vms/web-1", json={"description": "theirs"})
    for answer in (
        await api.http.patch("/api/v1/vms/web-1", json={"description": "mine"}, headers={"if-match": mine}),
        await api.http.post("/api/v1/vms/web-1/start", headers={"if-match": mine}),
        await api.http.delete("/api/v1/vms/web-1", headers={"if-match": mine}),
    ):
        problem_of(answer, 412, "precondition_failed")
    now = (await api.http.get("/api/v1/vms/web-1")).headers["etag"]
    answer = await api.http.patch("/api/v1/vms/web-1", json={"description": "mine"}, headers={"if-match": now})
    assert answer.json()["description"] == "mine"


@pytest.mark.parametrize(
    ("verb", "status", "desired", "task"),
    [
        ("start", MachineStatus.STOPPED, Desired.RUNNING, TaskKind.START),
        ("start", MachineStatus.CRASHED, Desired.RUNNING, TaskKind.START),
        ("stop", MachineStatus.RUNNING, Desired.STOPPED, TaskKind.STOP),
        ("stop", MachineStatus.PAUSED, Desired.STOPPED, TaskKind.STOP),
        ("restart", MachineStatus.RUNNING, Desired.RUNNING, TaskKind.RESTART),
        ("pause", MachineStatus.RUNNING, Desired.PAUSED, TaskKind.PAUSE),
        ("resume", MachineStatus.PAUSED, Desired.RUNNING, TaskKind.RESUME),
        ("resume", MachineStatus.STALLED, Desired.RUNNING, TaskKind.RESUME),
    ],
)
async def test_a_verb_records_what_is_wanted_and_the_work(
    api: Api, verb: str, status: MachineStatus, desired: Desired, task: TaskKind
) -> None:
    await api.vm(node=await api.node(), status=status)
    answer = await api.http.post(f"/api/v1/vms/web-1/{verb}")
    assert answer.status_code == 202
    vm = api.records.find(VMS, "web-1").record
    assert vm.task is not None
    assert (vm.desired, vm.task.kind, vm.task.requested_by) == (desired, task, "admin")
    again = await api.http.post(f"/api/v1/vms/web-1/{verb}")  # under way already: the same task
    assert again.status_code == 202
    assert again.json()["task"]["id"] == vm.task.id


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("start", MachineStatus.RUNNING),
        ("stop", MachineStatus.STOPPED),
        ("pause", MachineStatus.PAUSED),
        ("resume", MachineStatus.RUNNING),
    ],
)
async def test_a_verb_whose_end_is_reached_changes_nothing(api: Api, verb: str, status: MachineStatus) -> None:
    stored = await api.vm(node=await api.node(), status=status)
    answer = await api.http.post(f"/api/v1/vms/web-1/{verb}")
    assert (answer.status_code, answer.json()["revision"]) == (200, stored.modified)


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("start", MachineStatus.PAUSED),
        ("restart", MachineStatus.STOPPED),
        ("pause", MachineStatus.STOPPED),
        ("pause", MachineStatus.STALLED),
        ("resume", MachineStatus.STOPPED),
    ],
)
async def test_a_verb_the_state_forbids(api: Api, verb: str, status: MachineStatus) -> None:
    stored = await api.vm(node=await api.node(), status=status)
    problem = problem_of(await api.http.post(f"/api/v1/vms/web-1/{verb}"), 409, "state_conflict")
    assert problem["reasons"][0]["remedy"]
    assert api.records.find(VMS, "web-1").modified == stored.modified


async def test_force_pushes_other_work_aside_and_nothing_else_does(api: Api) -> None:
    await api.vm(node=await api.node(), status=MachineStatus.RUNNING)
    await api.http.post("/api/v1/vms/web-1/restart")
    busy = problem_of(await api.http.post("/api/v1/vms/web-1/stop"), 409, "busy")
    assert "restart" in busy["detail"]
    forced = await api.http.post("/api/v1/vms/web-1/stop", json={"force": True})
    assert (forced.status_code, forced.json()["task"]["kind"], forced.json()["task"]["force"]) == (202, "stop", True)


async def test_stop_takes_its_manner_from_the_body(api: Api) -> None:
    await api.vm(node=await api.node(), status=MachineStatus.RUNNING)
    await api.http.post("/api/v1/vms/web-1/stop", json={"deadline_s": 7.5})
    task = api.records.find(VMS, "web-1").record.task
    assert task is not None
    assert (task.deadline_s, task.force) == (7.5, False)
    for wrong in ({"deadline_s": -1}, {"deadline_s": 3601}, {"mode": "kill"}):
        problem_of(await api.http.post("/api/v1/vms/web-1/stop", json=wrong), 422, "invalid_input")


async def test_a_vm_held_by_a_migration_or_lost_with_its_node_is_left_alone(api: Api) -> None:
    node = await api.node()
    await api.vm("moving", node=node, status=MachineStatus.RUNNING, migration_id="m-1")
    await api.vm("lost", node=node, status=MachineStatus.RUNNING, node_lost=True)
    for verb in ("start", "stop", "restart", "pause", "resume"):
        body = {"force": True} if verb in ("stop", "restart") else None
        busy = problem_of(await api.http.post(f"/api/v1/vms/moving/{verb}", json=body), 409, "busy")
        assert busy["reasons"][0]["subject"] == "m-1"
        problem_of(await api.http.post(f"/api/v1/vms/lost/{verb}", json=body), 409, "state_conflict")
    problem_of(await api.http.delete("/api/v1/vms/moving?force=true"), 409, "busy")
    problem_of(await api.http.delete("/api/v1/vms/lost?force=true"), 409, "state_conflict")
    problem_of(await api.http.patch("/api/v1/vms/moving", json={"vcpus": 2}), 409, "busy")


async def test_delete_wants_a_stopped_vm_or_force(api: Api) -> None:
    node = await api.node()
    await api.vm("on", node=node, status=MachineStatus.RUNNING)
    await api.vm("off", node=node)
    problem_of(await api.http.delete("/api/v1/vms/on"), 409, "state_conflict")
    for path in ("/api/v1/vms/off", "/api/v1/vms/on?force=true"):
        answer = await api.http.delete(path)
        assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
        assert (await api.http.delete(path)).json()["revision"] == answer.json()["revision"]
    problem_of(await api.http.post("/api/v1/vms/off/start"), 409, "state_conflict")
    problem_of(await api.http.delete("/api/v1/vms/on?force=perhaps"), 422, "invalid_input")


async def test_start_needs_room_on_its_node(api: Api) -> None:
    node = await api.node(memory_mib=512 + 700)
    await api.vm("first", node=node)
    await api.vm("second", node=node)
    assert (await api.http.post("/api/v1/vms/first/start")).status_code == 202
    problem = problem_of(await api.http.post("/api/v1/vms/second/start"), 507, "no_room")
    assert problem["reasons"][0]["code"] == "memory.short"


async def test_lists_filter_by_name_state_node_and_labels(api: Api) -> None:
    one, two = await api.node("node-1"), await api.node("node-2")
    await api.vm("a", node=one, status=MachineStatus.RUNNING, labels={"tier": "web", "stage": "test"})
    await api.vm("b", node=two, labels={"tier": "web"})
    await api.vm("c", node=two, labels={"tier": "db"})

    async def names(query: str) -> list[str]:
        answer = await api.http.get(f"/api/v1/vms?{query}")
        assert answer.status_code == 200, answer.text
        return sorted(vm["name"] for vm in answer.json()["items"])

    assert await names("") == ["a", "b", "c"]
    assert await names("name=b") == ["b"]
    assert await names("state=running") == ["a"]
    assert await names("node=node-2") == ["b", "c"]
    assert await names(f"node={one.id}") == ["a"]
    assert await names("label=tier=web") == ["a", "b"]
    assert await names("label=tier%3Dweb&label=stage") == ["a"]
    assert await names("label=tier!=web") == ["c"]
    assert await names("label=nothing") == []
    assert await names("state=stopped&label=tier=web") == ["b"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("cursor=abc", "cursor"),
        ("cursor=MQ", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "A" * 65, "cursor"),
        ("state=flying", "state"),
        ("node=nowhere", "node"),
        ("node=../x", "node"),
        ("label=a=b=c", "label"),
        ("label==", "label"),
        ("label=a%0A=b", "label"),
        ("label=" + "a" * 200, "label.0"),
        ("&".join(["label=a"] * 17), "label"),
        ("stat=running", "stat"),
        ("name=%00", "name"),
    ],
)
async def test_a_wrong_filter_is_named(api: Api, query: str, field: str) -> None:
    problem = problem_of(await api.http.get(f"/api/v1/vms?{query}"), 422, "invalid_input")
    assert fields_of(problem) == [field]


async def test_pages_hold_every_record_once_while_others_are_made(api: Api) -> None:
    for number in range(25):
        await api.vm(f"old-{number}")
    seen: list[str] = []
    query, rounds = "limit=4", 0
    while True:
        answer = (await api.http.get(f"/api/v1/vms?{query}")).json()
        assert len(answer["items"]) <= 4
        seen += [vm["name"] for vm in answer["items"]]
        rounds += 1
        if answer["next_cursor"] is None:
            break
        if rounds < 5:
            await api.vm(f"new-{rounds}")
        query = f"limit=4&cursor={answer['next_cursor']}"
    assert len(seen) == len(set(seen))
    assert {f"old-{number}" for number in range(25)} <= set(seen)


async def test_the_console_log_is_read_from_the_node(api: Api) -> None:
    node = await api.node()
    stored = await api.vm(node=node, status=MachineStatus.RUNNING)
    answer = await api.http.get("/api/v1/vms/web-1/console-log?max_bytes=1000")
    assert wire.ConsoleLog.model_validate_json(answer.content).text == "login: "
    assert answer.json()["vm_id"] == stored.record.id
    assert api.agents.calls[-1].max_bytes == 1000  # type: ignore[attr-defined]
    api.agents.connected.clear()
    problem_of(await api.http.get("/api/v1/vms/web-1/console-log"), 503, "node_unreachable")
    problem_of(await api.http.get("/api/v1/vms/web-1/console-log?max_bytes=0"), 422, "invalid_input")


async def test_times_are_utc(api: Api) -> None:
    await api.vm()
    assert (await api.http.get("/api/v1/vms/web-1")).json()["created_at"] == NOW.isoformat().replace("+00:00", "Z")
