"""Idempotency-Key: a POST repeated is done once and answered alike; another request under the key is refused."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from novacron.control import once
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.model.machine import MachineStatus
from tests.control.api import Api, problem_of

pytestmark = pytest.mark.anyio

KEY = {"idempotency-key": "01-éà".encode().hex()}


async def test_a_create_repeated_answers_word_for_word(api: Api) -> None:
    await api.node()
    await api.image()
    body = {"name": "web-1", "image": "tiny"}
    first = await api.http.post("/api/v1/vms", json=body, headers=KEY)
    assert first.status_code == 202
    await api.http.patch("/api/v1/vms/web-1", json={"description": "changed since"})
    again = await api.http.post("/api/v1/vms", json=body, headers=KEY)
    assert (again.status_code, again.content) == (202, first.content)
    for name in ("etag", "location"):
        assert again.headers[name] == first.headers[name]
    assert len(api.records.all(VMS)) == 1


async def test_sent_many_times_at_once_it_is_done_once(api: Api) -> None:
    await api.node()
    await api.image()
    body = {"name": "web-1", "image": "tiny"}
    answers = await asyncio.gather(*(api.http.post("/api/v1/vms", json=body, headers=KEY) for _ in range(10)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(202, answers[0].content)}
    assert len(api.records.all(VMS)) == 1


async def test_another_request_under_the_key_is_refused(api: Api) -> None:
    await api.node()
    await api.image()
    await api.http.post("/api/v1/vms", json={"name": "web-1", "image": "tiny"}, headers=KEY)
    other = await api.http.post("/api/v1/vms", json={"name": "web-2", "image": "tiny"}, headers=KEY)
    problem_of(other, 409, "idempotency_mismatch")
    problem_of(await api.http.post("/api/v1/vms/web-1/start", headers=KEY), 409, "idempotency_mismatch")
    assert len(api.records.all(VMS)) == 1


async def test_a_refused_request_does_not_use_the_key_up(api: Api) -> None:
    await api.image()
    body = {"name": "web-1", "image": "tiny"}
    problem_of(await api.http.post("/api/v1/vms", json=body, headers=KEY), 507, "no_room")
    await api.node()
    assert (await api.http.post("/api/v1/vms", json=body, headers=KEY)).status_code == 202


async def test_a_verb_repeated_does_not_act_again(api: Api) -> None:
    node = await api.node()
    await api.vm(node=node, status=MachineStatus.RUNNING)
    first = await api.http.post("/api/v1/vms/web-1/stop", json={"force": True}, headers=KEY)
    await api.http.post("/api/v1/vms/web-1/restart", json={"force": True})
    again = await api.http.post("/api/v1/vms/web-1/stop", json={"force": True}, headers=KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    task = api.records.find(VMS, "web-1").record.task
    assert task is not None
    assert task.kind == "restart"


async def test_a_verb_that_had_nothing_to_do_is_remembered_too(api: Api) -> None:
    stored = await api.vm(node=await api.node(), status=MachineStatus.RUNNING)
    first = await api.http.post("/api/v1/vms/web-1/start", headers=KEY)
    assert (first.status_code, first.json()["revision"]) == (200, stored.modified)
    await api.http.post("/api/v1/vms/web-1/stop")
    again = await api.http.post("/api/v1/vms/web-1/start", headers=KEY)
    assert (again.status_code, again.content) == (200, first.content)


async def test_a_migration_repeated_is_the_same(api: Api) -> None:
    source = await api.node("node-1")
    await api.node("node-2")
    await api.vm(node=source, status=MachineStatus.RUNNING)
    first = await api.http.post("/api/v1/migrations", json={"vm": "web-1"}, headers=KEY)
    again = await api.http.post("/api/v1/migrations", json={"vm": "web-1"}, headers=KEY)
    assert (again.status_code, again.content) == (202, first.content)
    assert len(api.records.all(MIGRATIONS)) == 1


@pytest.mark.parametrize("key", ["", "a b", "a" * 256, "é"])
async def test_a_key_has_its_bounds(api: Api, key: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = await api.http.post("/api/v1/vms/web-1/start", headers=headers)  # type: ignore[arg-type]
    problem_of(answer, 422, "invalid_input")


async def test_keys_are_kept_a_day_and_then_swept(api: Api) -> None:
    await api.vm(node=await api.node(), status=MachineStatus.RUNNING)
    for number in range(70):
        await api.http.post("/api/v1/vms/web-1/start", headers={"idempotency-key": f"k{number}"})
    store, now = api.records.store, datetime.datetime.now(datetime.UTC)
    assert await once.sweep(store, now + datetime.timedelta(hours=23)) == 0
    assert len((await store.list(once.KEYS)).entries) == 70
    assert await once.sweep(store, now + datetime.timedelta(hours=25)) == 70
    assert (await store.list(once.KEYS)).entries == ()
