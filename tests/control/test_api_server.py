"""The server about itself: health, readiness, figures, and what nobody foresaw."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request
from prometheus_client.parser import text_string_to_metric_families

from novacron.control import web
from novacron.errors import StoreUnavailable
from novacron.model.machine import MachineStatus
from tests.control.api import Api, problem_of

pytestmark = pytest.mark.anyio


async def _figures(api: Api) -> dict[tuple[str, ...], float]:
    text = (await api.http.get("/metrics")).text
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_figures_count_objects_by_state_and_requests_by_route(api: Api) -> None:
    node = await api.node()
    await api.vm("a", node=node, status=MachineStatus.RUNNING)
    await api.vm("b", node=node)
    for path in ("/api/v1/vms/a", "/api/v1/vms/b", "/api/v1/vms/c", "/nowhere/a", "/nowhere/b"):
        await api.http.get(path)
    async with api.client(None) as nobody:
        await nobody.request("BREW", "/api/v1/vms")
    figures = await _figures(api)
    assert figures["novacron_vms", "state=running"] == 1
    assert figures["novacron_vms", "state=stopped"] == 1
    assert figures["novacron_vms", "state=error"] == 0
    assert figures["novacron_nodes", "state=up"] == 1
    assert figures["novacron_migrations", "state=pending"] == 0
    route = "route=/api/v1/vms/{vm}"
    assert figures["novacron_http_requests_total", "method=GET", route, "status=200"] == 2
    assert figures["novacron_http_requests_total", "method=GET", route, "status=404"] == 1
    assert figures["novacron_http_requests_total", "method=(any)", "route=(none)", "status=404"] == 2
    assert figures["novacron_http_requests_total", "method=(any)", "route=(none)", "status=401"] == 1
    assert figures["novacron_http_request_seconds_count", "method=GET", route] == 3
    assert figures["process_resident_memory_bytes",] > 1e6
    assert not any("nowhere" in part or "BREW" in part for key in figures for part in key)


async def test_ready_only_while_the_cache_follows_the_store(api: Api) -> None:
    assert (await api.http.get("/readyz")).json() == {"ready": True}
    await api.records.stop()
    problem_of(await api.http.get("/readyz"), 503, "store_unavailable")
    assert (await api.http.get("/healthz")).json() == {"ok": True}  # it lives, it cannot work


async def test_a_store_that_hangs_is_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READY_WITHIN_S", 0.05)

    async def never() -> int:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    monkeypatch.setattr(api.records.store, "revision", never)
    problem = problem_of(await api.http.get("/readyz"), 503, "store_unavailable")
    assert problem["reasons"][0]["remedy"]


async def test_a_store_that_fails_is_told_as_such(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> int:
        raise StoreUnavailable("the disk is full")

    await api.vm()
    monkeypatch.setattr(api.records.store, "commit", fail)
    problem = problem_of(await api.http.patch("/api/v1/vms/web-1", json={"vcpus": 2}), 503, "store_unavailable")
    assert problem["detail"] == "the disk is full"
    assert (await api.http.get("/api/v1/vms/web-1")).status_code == 200


async def test_what_nobody_foresaw_is_an_incident_number_and_no_more(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    @api.app.get("/api/v1/trap")
    async def trap(request: Request) -> None:
        raise RuntimeError("the password is hunter2")

    answer = await api.http.get("/api/v1/trap")
    problem = problem_of(answer, 500, "internal")
    incident = problem["reasons"][0]["subject"]
    assert incident in problem["detail"]
    assert "hunter2" not in answer.text
    logged = capsys.readouterr().out
    assert incident in logged
    assert "hunter2" in logged
