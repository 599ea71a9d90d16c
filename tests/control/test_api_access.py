"""Who may ask: every path wants a token, every route its permission; the first token is made once and kept safe."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import stat
from pathlib import Path

import msgspec
import pytest

from novacron.control.access.guard import permissions
from novacron.control.access.service import TOKENS, Access, Principal
from novacron.control.store.base import Delete, Put
from novacron.control.store.sqlite import SqliteStore
from novacron.control.web import BROWSABLE, OPEN
from tests.control.api import Api, problem_of

pytestmark = pytest.mark.anyio


async def _grant(api: Api, token: str, *permissions: str) -> None:
    """A principal with just these permissions, known as soon as this returns."""
    key = TOKENS + hashlib.sha256(token.encode()).hexdigest()
    value = msgspec.json.encode(Principal(name="limited", permissions=permissions))
    await api.records.commit(ops=[Put(key, value)])
    await _until_known(api, token, known=True)


async def _until_known(api: Api, token: str, *, known: bool) -> None:
    async with asyncio.timeout(5):
        while (api.access.who(token) is not None) is not known:
            await asyncio.sleep(0.001)


async def test_nothing_but_health_answers_without_a_token(api: Api) -> None:
    paths = [(method, path) for method, path, _ in permissions(api.app) if method != "WEBSOCKET"]
    assert len(paths) > 20
    async with api.client(None) as nobody, api.client("nct_" + "A" * 43) as stranger:
        for method, path in [*paths, ("GET", "/"), ("GET", "/api/v1/nothing"), ("PUT", "/api/v1/vms")]:
            filled = path.replace("{", "").replace("}", "")
            for http in (nobody, stranger):
                answer = await http.request(method, filled, content=b"{ not json")
                if path in OPEN:
                    assert answer.status_code == 200
                    continue
                problem_of(answer, 401, "unauthenticated")
                scheme = "Basic" if (method, path) in [("GET", one) for one in BROWSABLE] else "Bearer"
                assert answer.headers["www-authenticate"].startswith(scheme)


async def test_every_route_names_its_permission(api: Api) -> None:
    table = list(permissions(api.app))
    unnamed = {path for _, path, permission in table if permission is None}
    below = tuple(one for one in OPEN if one.endswith("/"))  # the agents' doors, which have a secret of their own
    assert unnamed == {one for one in OPEN if one not in below} | {path for path in unnamed if path.startswith(below)}
    by_permission = {permission: (method, path) for method, path, permission in table}
    assert by_permission["vms.delete"] == ("DELETE", "/api/v1/vms/{vm}")
    assert by_permission["migrations.create"] == ("POST", "/api/v1/migrations")
    assert by_permission["events.read"] == ("WEBSOCKET", "/api/v1/events")
    reading = {permission for method, _, permission in table if method == "GET"}
    writing = {permission for method, _, permission in table if method not in ("GET", "WEBSOCKET")}
    assert (reading & writing) - {None} == set()


async def test_a_token_may_do_what_it_is_permitted_and_no_more(api: Api) -> None:
    await api.vm()
    await _grant(api, "nct_limited", "vms.read")
    async with api.client("nct_limited") as http:
        for method, path, permission in permissions(api.app):
            if method == "WEBSOCKET" or permission is None:
                continue
            answer = await http.request(method, path.replace("{vm}", "web-1").replace("{", "").replace("}", ""))
            if permission == "vms.read":
                assert answer.status_code == 200, path
            else:
                assert problem_of(answer, 403, "forbidden")["reasons"][0]["subject"] == permission


async def test_a_revoked_token_stops_at_once(api: Api) -> None:
    await _grant(api, "nct_limited", "*")
    async with api.client("nct_limited") as http:
        assert (await http.get("/api/v1/vms")).status_code == 200
        await api.records.commit(ops=[Delete(TOKENS + hashlib.sha256(b"nct_limited").hexdigest())])
        await _until_known(api, "nct_limited", known=False)
        problem_of(await http.get("/api/v1/vms"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {basic}",
        "bearer x {token}",
        "Token {token}",
        "{token}",
        "Bearer " + "A" * 100_000,
    ],
)
async def test_what_is_not_a_bearer_token_is_refused(api: Api, header: str) -> None:
    basic = base64.b64encode(f"admin:{api.token}".encode()).decode()
    async with api.client(None) as http:
        headers = {"authorization": header.format(token=api.token, basic=basic)}
        problem_of(await http.get("/api/v1/vms", headers=headers), 401, "unauthenticated")
        problem_of(await http.get(f"/api/v1/vms?token={api.token}"), 401, "unauthenticated")


@pytest.mark.parametrize("path", BROWSABLE)
async def test_a_browser_reads_documents_with_basic(api: Api, path: str) -> None:
    async with api.client(None) as http:
        assert (await http.get(path, auth=("any", api.token))).status_code == 200
        problem_of(await http.get(path, auth=("any", "wrong")), 401, "unauthenticated")
        problem_of(await http.post(path, auth=("any", api.token)), 401, "unauthenticated")
        bad = {"authorization": "Basic ###"}
        problem_of(await http.get(path, headers=bad), 401, "unauthenticated")


async def test_the_first_token_is_made_once_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    token = await Access(store).start(tmp_path)
    assert token is not None
    assert len(base64.urlsafe_b64decode(token.removeprefix("nct_") + "=")) == 32
    file = tmp_path / "admin.token"
    assert (file.read_text().strip(), stat.S_IMODE(file.stat().st_mode)) == (token, 0o600)
    again = Access(store)
    assert await again.start(tmp_path) is None
    assert again.who(token) == Principal(name="admin", permissions=("*",))
    assert again.who(token[:-1]) is None
    await store.close()
    assert all(token.encode() not in one.read_bytes() for one in tmp_path.glob("store.db*"))


@pytest.mark.parametrize("left", ["whole", "half"])
async def test_a_first_start_cut_off_is_begun_again(tmp_path: Path, left: str) -> None:
    before = "nct_" + "A" * 43
    (tmp_path / "admin.token").write_text(before + "\n" if left == "whole" else "nct_A")
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    access = Access(store)
    token = await access.start(tmp_path)
    assert token is not None
    assert (token == before) is (left == "whole")
    assert access.who((tmp_path / "admin.token").read_text().strip()) is not None
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    await store.close()


async def test_answers_tell_browsers_to_do_nothing_with_them(api: Api) -> None:
    for path in ("/healthz", "/api/v1/vms", "/api/v1/nothing"):
        headers = (await api.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in headers


async def test_a_known_path_with_another_method_says_which_it_takes(api: Api) -> None:
    answer = await api.http.put("/api/v1/vms/web-1")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    for path in ("/api/v1/vms/", "/api//v1/vms", "/api/v1/%2e%2e/vms", "/api/v1/vms/a/b/c"):
        problem_of(await api.http.get(path), 404, "not_found")
