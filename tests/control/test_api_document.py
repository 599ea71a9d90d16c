"""The OpenAPI document and its page: every route is there with its permission, words, answers and errors."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import openapi_spec_validator
import pytest
from pydantic import TypeAdapter

from novacron.control.access.guard import permissions
from novacron.control.problems import PROBLEM_JSON
from novacron.wire.rest import (
    devices,
    images,
    migration_plans,
    migrations,
    networks,
    nodes,
    pools,
    security_groups,
    vms,
    volumes,
)
from tests.control.api import Api

pytestmark = pytest.mark.anyio

UNDOCUMENTED = {"/api/openapi.json", "/api/docs"}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The document, once it was asked for."""
    return {}


@pytest.fixture
async def document(api: Api, made: dict[str, Any]) -> dict[str, Any]:
    if not made:
        made |= (await api.http.get("/api/openapi.json")).json()
    return made


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


async def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    openapi_spec_validator.validate(document)


async def test_every_route_is_in_it_with_its_permission(api: Api, document: dict[str, Any]) -> None:
    served = {
        (method, path): permission
        for method, path, permission in permissions(api.app)
        if method != "WEBSOCKET" and path not in UNDOCUMENTED
    }
    described = {key: operation.get("x-permission") for key, operation in operations(document).items()}
    assert described == served
    for (_, path), operation in operations(document).items():
        assert operation["security"] == ([] if path in ("/healthz", "/readyz") else [{"token": []}])


async def test_every_operation_has_words_answers_and_errors(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))
    for key, operation in operations(document).items():
        assert operation["description"], key
        assert operation["summary"], key
        assert len(operation["tags"]) == 1, key
        answers = operation["responses"]
        good = [answer for status, answer in answers.items() if status.startswith("2")]
        assert good, key
        for answer in good:
            assert answer is answers.get("204") or all(media["schema"] for media in answer["content"].values()), key
        if "x-permission" in operation:
            assert {"400", "401", "403", "422", "500", "503"} <= set(answers), key
        for status, answer in answers.items():
            if status >= "400":
                assert list(answer["content"]) == [PROBLEM_JSON], (key, status)
                assert answer["content"][PROBLEM_JSON]["schema"] == {"$ref": "#/components/schemas/Problem"}
        if "{" in key[1]:
            assert "404" in answers, key
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"], (key, parameter)


async def test_writes_may_be_guarded_and_repeated(document: dict[str, Any]) -> None:
    for (method, path), operation in operations(document).items():
        headers = {one["name"].lower() for one in operation.get("parameters", ()) if one["in"] == "header"}
        if method == "POST" and not path.endswith("-plans"):  # a plan changes nothing
            assert "idempotency-key" in headers, path
        if method in ("PATCH", "DELETE") or (method == "POST" and "{" in path):
            assert "if-match" in headers, path
            assert "412" in operation["responses"], path


async def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    seen = set()
    moves = (migrations, migration_plans)
    for module in (vms, devices, nodes, images, *moves, networks, security_groups, pools, volumes):
        for name, model in vars(module).items():
            if isinstance(model, type) and name in document["components"]["schemas"]:
                for example in document["components"]["schemas"][name].get("examples", ()):
                    TypeAdapter(model).validate_python(example, strict=False)
                    seen.add(name)
    assert seen >= {"VmCreate", "VmUpdate", "Vm", "Node", "NodeUpdate"}
    assert seen >= {"NetworkCreate", "Network", "SecurityGroupCreate", "SecurityGroup", "NicUpdate"}
    assert seen >= {"PoolCreate", "Pool", "VolumeCreate", "VolumeUpdate", "Volume", "DiskIn"}
    assert seen >= {"ImageCreate", "Image", "MigrationCreate", "Migration", "MigrationPlan"}


async def test_the_page_shows_every_operation_and_loads_nothing(api: Api, document: dict[str, Any]) -> None:
    answer = await api.http.get("/api/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.headers["content-security-policy"]
    page = _Page(answer.text)
    assert page.ids >= {operation["operationId"] for operation in operations(document).values()}
    assert page.ids >= {f"schema-{name}" for name in document["components"]["schemas"]}
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= page.ids
    assert {link for link in page.links if not link.startswith("#")} == {"/api/openapi.json"}
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form"}
    assert not re.search(r"\son\w+=|style=", answer.text)
    policy = answer.headers["content-security-policy"]
    assert page.style_hash in policy


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.style = ""
        self._in_style = False
        self.feed(text)

    @property
    def style_hash(self) -> str:
        return base64.b64encode(hashlib.sha256(self.style.encode()).digest()).decode()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in_style = tag == "style"
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.add(value)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
