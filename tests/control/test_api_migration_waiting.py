"""Migrations that wait for their time, over the API: the VM is free, one waits at most, cancel ends it at once."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS, VOLUMES
from novacron.model.machine import MachineStatus
from novacron.model.migration import MigrationKind, Request
from novacron.model.pool import Pool, PoolDriver, Reach
from novacron.model.vm import VmState
from novacron.model.volume import Place, Volume
from novacron.wire.rest import migrations as wire
from tests.control.api import GIB, NOW, POOL_ID, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio


def tomorrow() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=1)


async def _world(api: Api) -> None:
    source, _ = await api.node("node-1"), await api.node("node-2")
    await api.vm(node=source, status=MachineStatus.RUNNING)


async def _ask(api: Api, **body: Any) -> Any:
    return await api.http.post("/api/v1/migrations", json={"vm": "web-1", **body})


async def _wish(api: Api, **body: Any) -> wire.Migration:
    answer = await _ask(api, starts_at=tomorrow().isoformat(), **body)
    assert answer.status_code == 202, answer.text
    return wire.Migration.model_validate_json(answer.content)


async def test_a_vm_whose_move_waits_is_free_and_the_record_says_so(api: Api) -> None:
    await _world(api)
    made = await _wish(api, target_node="node-2", kind="live", max_downtime_ms=400)
    assert (made.state, made.holds_vm, made.held_up, made.may_cancel) == ("pending", False, None, True)
    vm = (await api.http.get("/api/v1/vms/web-1")).json()
    assert (vm["state"], vm["migration_id"]) == (VmState.RUNNING, None)
    kept = api.records.find(MIGRATIONS, made.id).record.request
    target = api.records.find(NODES, "node-2").record.id
    assert kept is not None
    assert (kept.target_node, kept.kind, kept.max_downtime_ms) == (target, MigrationKind.LIVE, 400)
    assert kept != Request()
    stopped = await api.http.post("/api/v1/vms/web-1/stop", json={})
    assert stopped.status_code == 202, stopped.text


async def test_one_waits_at_most_and_a_refusal_says_which_and_what_to_type(api: Api) -> None:
    await _world(api)
    first = await _wish(api)
    refused = problem_of(await _ask(api, starts_at=tomorrow().isoformat()), 409, "busy")
    (reason,) = refused["reasons"]
    assert (reason["code"], reason["subject"]) == ("vm.move_waits", first.id)
    assert f"novacron migration cancel {first.id}" in reason["remedy"]
    at_once = await _ask(api)
    assert at_once.status_code == 202, at_once.text
    assert at_once.json()["holds_vm"] is True
    assert api.records.find(VMS, "web-1").record.migration_id == at_once.json()["id"]


async def test_one_that_waits_is_cancelled_at_once(api: Api) -> None:
    await _world(api)
    first = await _wish(api)
    before = api.records.find(VMS, "web-1").modified
    answer = await api.http.post(f"/api/v1/migrations/{first.id}/cancel")
    assert answer.status_code == 200, answer.text
    ended = wire.Migration.model_validate_json(answer.content)
    assert (ended.state, ended.holds_vm, ended.may_cancel) == ("cancelled", False, False)
    assert ended.finished_at is not None
    assert api.records.find(VMS, "web-1").modified == before
    await _wish(api)


async def test_a_wish_that_could_not_be_begun_is_refused_as_one_that_begins_at_once(api: Api) -> None:
    await _world(api)
    wrong = await _ask(api, starts_at=tomorrow().isoformat(), target_node="node-9")
    assert fields_of(problem_of(wrong, 422, "invalid_input")) == ["target_node"]
    here = await _ask(api, starts_at=tomorrow().isoformat(), target_node="node-1")
    assert fields_of(problem_of(here, 422, "invalid_input")) == ["target_node"]
    assert api.records.all(MIGRATIONS) == []


async def test_a_wish_is_made_once_for_a_key(api: Api) -> None:
    await _world(api)
    body = {"vm": "web-1", "starts_at": tomorrow().isoformat()}
    made = [
        await api.http.post("/api/v1/migrations", json=body, headers={"idempotency-key": "k"}) for _ in range(2)
    ]  # fmt: skip
    assert [one.status_code for one in made] == [202, 202]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert len(api.records.all(MIGRATIONS)) == 1


async def test_neither_a_place_nor_a_unit_is_taken_for_a_wish(api: Api) -> None:
    await _world(api)
    seen = Reach(available=True, checked_at=NOW, free_bytes=5 * GIB, size_bytes=9 * GIB)
    units = Pool(
        id=api.records.new_id(),
        name="units",
        driver=PoolDriver.NBD,
        shared=True,
        options={"address": "192.0.2.7:10809", "units": "only"},
        reach={stored.record.id: seen for stored in api.records.all(NODES)},
        created_at=NOW,
        updated_at=NOW,
    )
    await api.records.create(POOLS, units)
    vm = api.records.find(VMS, "web-1").record
    await api.records.change(VMS, vm.id, lambda now: msgspec.structs.replace(now, booted=now.spec))
    disk_id = vm.spec.disks[0].volume_id
    root = Volume(
        id=disk_id, name="root", pool_id=POOL_ID, size_bytes=GIB, vm_id=vm.id, created_at=NOW, updated_at=NOW
    )  # fmt: skip
    await api.records.create(VOLUMES, root)
    waiting = await _wish(api, disk_pools={"root": "units"}, target_node="node-2")
    assert [(one.volume_id, one.to_pool) for one in waiting.disks] == [(disk_id, "units")]
    assert api.records.find(VOLUMES, disk_id).record == root
    begun = await _ask(api, disk_pools={"root": "units"}, target_node="node-2")
    assert begun.status_code == 202, begun.text
    other = api.records.find(VOLUMES, disk_id).record.other
    assert other == Place(pool_id=units.id, unit="only")
    kept = api.records.find(MIGRATIONS, waiting.id).record
    assert kept.request is not None
    assert kept.request.disk_pools == {disk_id: units.id}
    assert [one.to_unit for one in kept.disks] == [""]
