"""Several servers on one store, one of which hears of changes late: what it may still answer, and what never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from novacron.control import answers
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put, Store
from tests.control.api import Api, another, problem_of

pytestmark = pytest.mark.anyio

VM = "/api/v1/vms/web-1"
NEWEST = {"consistent": "true"}


class LateStore:
    """A store that tells of no change while it is `late`, until somebody asks how far it has come. Implements Store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open = asyncio.Event()
        self._open.set()
        self.is_dumb = False  # it tells of nothing even then
        self.asked = 0

    def late(self) -> None:
        self._open.clear()

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        return await self._store.list(prefix, after=after, limit=limit)

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        return await self._store.commit(ops, expect)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        async for changes in self._store.watch(prefix, after=after):
            await self._open.wait()
            yield changes

    async def revision(self) -> int:
        self.asked += 1
        if not self.is_dumb:
            self._open.set()
        return await self._store.revision()

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        """The store is the first server's."""


@pytest.fixture
async def late(api: Api, tmp_path: Path) -> AsyncIterator[tuple[Api, LateStore]]:
    """Another server, which has heard of the VM web-1 labelled a=1, and of nothing since."""
    await api.vm(labels={"a": "1"})
    store = LateStore(api.records.store)
    async with another(api, tmp_path / "late", store) as other:
        await other.records.refresh()
        store.late()
        yield other, store


async def _labels(api: Api, **labels: str) -> str:
    """Written there; the new ETag."""
    answer = await api.http.patch(VM, json={"labels": labels})
    assert answer.status_code == 200
    return answer.headers["etag"]


async def test_a_read_may_be_older_and_a_consistent_one_never(api: Api, late: tuple[Api, LateStore]) -> None:
    other, store = late
    await _labels(api, a="2")
    asked = store.asked
    assert (await other.http.get(VM)).json()["labels"] == {"a": "1"}
    assert store.asked == asked, "a plain read is answered from the cache alone"
    assert (await other.http.get(VM, params=NEWEST)).json()["labels"] == {"a": "2"}
    assert store.asked == asked + 1, "it costs one question"


async def test_so_do_lists_and_other_nouns(api: Api, late: tuple[Api, LateStore]) -> None:
    other, store = late
    await api.vm("web-2")
    assert len((await other.http.get("/api/v1/vms")).json()["items"]) == 1
    assert len((await other.http.get("/api/v1/vms", params=NEWEST)).json()["items"]) == 2
    store.late()
    node = await api.node()
    assert (await other.http.get(f"/api/v1/nodes/{node.id}")).status_code == 404
    assert (await other.http.get(f"/api/v1/nodes/{node.id}", params=NEWEST)).status_code == 200


async def test_if_match_with_the_newest_revision_is_never_refused(api: Api, late: tuple[Api, LateStore]) -> None:
    other, _ = late
    tag = await _labels(api, a="2")
    answer = await other.http.patch(VM, json={"labels": {"a": "3"}}, headers={"if-match": tag})
    assert answer.status_code == 200, answer.text
    await api.records.refresh()
    assert (await api.http.get(VM)).json()["labels"] == {"a": "3"}


async def test_if_match_with_an_older_one_is_refused_with_the_newest(api: Api, late: tuple[Api, LateStore]) -> None:
    other, _ = late
    tag = (await api.http.get(VM)).headers["etag"]
    newest = await _labels(api, a="2")
    refused = await other.http.patch(VM, json={"labels": {"a": "3"}}, headers={"if-match": tag})
    assert f"at revision {newest[1:-1]} now" in problem_of(refused, 412, "precondition_failed")["detail"]


async def test_what_only_seems_to_be_so_already_is_written(api: Api, late: tuple[Api, LateStore]) -> None:
    other, _ = late
    await _labels(api, a="2")
    answer = await other.http.patch(VM, json={"labels": {"a": "1"}})
    assert answer.status_code == 200
    await api.records.refresh()
    assert (await api.http.get(VM)).json()["labels"] == {"a": "1"}
    again = await other.http.patch(VM, json={"labels": {"a": "1"}})
    assert again.headers["etag"] == answer.headers["etag"], "and what is so is not written again"


async def test_what_was_made_just_now_can_be_changed(api: Api, late: tuple[Api, LateStore]) -> None:
    other, _ = late
    await api.vm("web-2")
    assert (await other.http.patch("/api/v1/vms/web-2", json={"labels": {"a": "3"}})).status_code == 200
    problem_of(await other.http.patch("/api/v1/vms/web-3", json={"labels": {}}), 404, "not_found")


async def test_a_write_that_names_what_another_made_asks_for_it(api: Api, late: tuple[Api, LateStore]) -> None:
    other, store = late
    await api.node()
    await api.image()
    body = {"name": "web-2", "image": "tiny"}
    store.late()
    assert (await other.http.post("/api/v1/vms", json=body)).status_code == 422
    store.late()
    assert (await other.http.post("/api/v1/vms", json=body, params=NEWEST)).status_code == 202


async def test_a_server_that_cannot_know_says_so(
    api: Api, late: tuple[Api, LateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, store = late
    store.is_dumb = True
    await _labels(api, a="2")
    monkeypatch.setattr(answers, "CAUGHT_UP_WITHIN_S", 0.01)
    refused = problem_of(await other.http.get(VM, params=NEWEST), 503, "store_unavailable")
    assert refused["reasons"][0]["code"] == "store.slow"
    assert (await other.http.get(VM, params={"consistent": "false"})).status_code == 200
    problem_of(await other.http.get(VM, params={"consistent": "perhaps"}), 422, "invalid_input")
