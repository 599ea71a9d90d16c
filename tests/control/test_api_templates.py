"""Templates over the API: versions that never change, parameters checked, many VMs made in one call or none."""

from __future__ import annotations

from typing import Any

import pytest

from novacron.control.store.kinds import VMS
from novacron.wire.rest import templates as wire
from novacron.wire.rest.common import PageOf
from novacron.wire.rest.vms import VmList
from tests.control.api import Api, fields_of, problem_of

pytestmark = pytest.mark.anyio

DATA = "#cloud-config\nhostname: {{vm.name}}\n"
VM = {"image": "tiny", "memory_mib": "{{param.mib}}", "cloud_init": {"user_data": DATA}}
PARAMETERS = [{"name": "mib", "type": "integer", "default": 64}]


async def _template(api: Api, **changed: Any) -> Any:
    body = {"name": "web", "vm": VM, "parameters": PARAMETERS} | changed
    return await api.http.post("/api/v1/templates", json=body)


async def _make(api: Api, key: str = "", **body: Any) -> Any:
    headers = {"idempotency-key": key} if key else {}
    return await api.http.post("/api/v1/templates/web/instantiate", json={"name": "web"} | body, headers=headers)


async def test_fifty_vms_in_one_call(api: Api) -> None:
    await api.node(memory_mib=65536, name="node-1")
    await api.node(memory_mib=65536, name="node-2")
    await api.node(memory_mib=65536, name="node-3")
    await api.node(memory_mib=65536, name="node-4")
    await api.image()
    assert (await _template(api)).status_code == 201
    answer = await _make(api, count=50, parameters={"mib": 128}, labels={"tier": "web"})
    assert answer.status_code == 202, answer.text
    made = VmList.model_validate_json(answer.content).items
    assert [vm.name for vm in made] == [f"web-{n}" for n in range(1, 51)]
    assert {(vm.memory_mib, vm.labels["tier"]) for vm in made} == {(128, "web")}
    assert len({vm.node for vm in made}) == 4  # each placed with those before it in mind
    assert len({vm.record.isolation_slot for vm in api.records.all(VMS)}) == 50
    texts = {vm.record.spec.cloud_init.user_data for vm in api.records.all(VMS) if vm.record.spec.cloud_init}
    assert "#cloud-config\nhostname: web-7\n" in texts


async def test_all_or_none(api: Api) -> None:
    await api.node(memory_mib=1024)
    await api.image()
    await _template(api)
    refused = await _make(api, count=20)
    problem_of(refused, 507, "no_room")
    assert api.records.all(VMS) == []
    await api.vm("web-3")
    refused = await _make(api, count=3)
    problem_of(refused, 409, "name_taken")
    assert len(api.records.all(VMS)) == 1


async def test_repeated_under_its_key_it_makes_them_once(api: Api) -> None:
    await api.node()
    await api.image()
    await _template(api)
    first, second = await _make(api, "k1", count=2), await _make(api, "k1", count=2)
    assert (first.status_code, second.status_code) == (202, 202)
    assert [vm["id"] for vm in first.json()["items"]] == [vm["id"] for vm in second.json()["items"]]
    assert len(api.records.all(VMS)) == 2


async def test_versions_stay_as_they_were(api: Api) -> None:
    await api.node()
    await api.image()
    await _template(api)
    added = await api.http.post("/api/v1/templates/web/versions", json={"vm": {"image": "tiny", "memory_mib": 256}})
    assert added.status_code == 201
    assert [version["number"] for version in added.json()["versions"]] == [1, 2]
    assert (await _make(api, name="new")).json()["items"][0]["memory_mib"] == 256
    assert (await _make(api, name="old", version=1)).json()["items"][0]["memory_mib"] == 64
    chosen = await api.http.patch("/api/v1/templates/web", json={"default_version": 1})
    assert chosen.json()["default_version"] == 1
    assert (await _make(api, name="again")).json()["items"][0]["memory_mib"] == 64
    problem_of(await api.http.delete("/api/v1/templates/web/versions/1"), 409, "conflict")
    await api.http.patch("/api/v1/templates/web", json={"default_version": 0})
    left = await api.http.delete("/api/v1/templates/web/versions/1")
    assert [version["number"] for version in left.json()["versions"]] == [2]
    assert fields_of(problem_of(await _make(api, name="gone", version=1), 422, "invalid_input")) == ["version"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"vm": {"image": "tiny", "memory_mib": "{{param.mbi}}"}}, "vm.memory_mib"),
        ({"vm": {"image": "tiny", "name": "x"}}, "vm.name"),
        ({"vm": {"image": "tiny", "vcpus": 0}}, "vm.vcpus"),
        ({"vm": {"image": "tiny", "tpyo": 1}}, "vm.tpyo"),
        ({"parameters": [{"name": "mib", "type": "integer", "default": "many"}]}, "parameters.0.default"),
        ({"parameters": [{"name": "mib"}, {"name": "mib"}]}, "parameters"),
        ({"default_version": 1}, "default_version"),
    ],
)
async def test_a_wrong_template_is_refused_by_field(api: Api, body: dict[str, Any], field: str) -> None:
    assert fields_of(problem_of(await _template(api, **body), 422, "invalid_input")) == [field]


async def test_a_value_that_makes_no_vm_is_refused(api: Api) -> None:
    await api.node()
    await api.image()
    await _template(api)
    assert fields_of(problem_of(await _make(api, parameters={"mib": 1}), 422, "invalid_input")) == ["vm.memory_mib"]
    assert fields_of(problem_of(await _make(api, parameters={"mbi": 1}), 422, "invalid_input")) == ["parameters.mbi"]
    assert api.records.all(VMS) == []


async def test_it_is_listed_shown_renamed_and_forgotten(api: Api) -> None:
    made = wire.Template.model_validate_json((await _template(api, labels={"a": "b"})).content)
    listed = PageOf[wire.Template].model_validate_json((await api.http.get("/api/v1/templates?label=a=b")).content)
    assert [one.id for one in listed.items] == [made.id]
    assert (await _template(api)).json()["code"] == "name_taken"
    await api.http.patch("/api/v1/templates/web", json={"name": "site", "description": "d"})
    assert (await api.http.get("/api/v1/templates/site")).json()["description"] == "d"
    stale = await api.http.delete("/api/v1/templates/site", headers={"if-match": '"1"'})
    assert stale.status_code == 412
    assert (await api.http.delete("/api/v1/templates/site")).status_code == 204
    assert (await api.http.get("/api/v1/templates/site")).status_code == 404
