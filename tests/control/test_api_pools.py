"""Storage pools over the API: what may be said of them, what nodes found, when they may go."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from novacron.control.pools.options import TABLE, check
from novacron.control.pools.prober import Prober, is_news
from novacron.control.pools.reach import spec_for
from novacron.control.pools.service import ensure_default
from novacron.control.store.kinds import POOLS, VMS, VOLUMES
from novacron.errors import InvalidInput, NovaCronError, Unsupported
from novacron.model.machine import Disk
from novacron.model.node import NodeState
from novacron.model.pool import Pool, PoolDriver, Reach
from novacron.wire.storage import PoolFound, PoolProbe
from tests.control.api import NOW, POOL_ID, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio

FAST = {"name": "fast", "driver": "directory", "options": {"path": "/srv/fast"}}
GIB = 1 << 30


async def made(api: Api, **changes: Any) -> dict[str, Any]:
    answer = await api.http.post("/api/v1/pools", json=FAST | changes)
    assert answer.status_code == 201, answer.text
    pool: dict[str, Any] = answer.json()
    return pool


async def test_the_default_pool_is_there_from_the_start(api: Api) -> None:
    (default,) = (await api.http.get("/api/v1/pools")).json()["items"]
    assert (default["id"], default["name"], default["driver"]) == (POOL_ID, "default", "directory")
    assert (default["is_default"], default["shared"], default["options"], default["reach"]) == (True, True, {}, [])


async def test_the_default_pool_of_another_directory_gets_another_name(api: Api) -> None:
    other = api.records.new_id()
    for _ in range(2):
        await ensure_default(api.records, _Clock(), other)
    names = {stored.record.id: stored.record.name for stored in api.records.all(POOLS)}
    assert names == {POOL_ID: "default", other: f"default-{other}"}


class _Clock:
    def wall(self) -> Any:
        return NOW

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


async def test_a_pool_is_made_changed_and_forgotten(api: Api) -> None:
    pool = await made(api, labels={"disk": "nvme"})
    path = f"/api/v1/pools/{pool['id']}"
    assert (pool["shared"], pool["volume_count"], pool["is_default"]) == (False, 0, False)
    assert (await api.http.get("/api/v1/pools/fast")).json() == pool
    assert [one["name"] for one in (await api.http.get("/api/v1/pools?label=disk=nvme")).json()["items"]] == ["fast"]
    assert (await api.http.get("/api/v1/pools?driver=nfs")).json()["items"] == []
    problem_of(await api.http.post("/api/v1/pools", json=FAST), 409, "name_taken")

    change = {"name": "faster", "options": {"path": "/srv/faster"}, "image_cache_bytes": GIB}
    changed = (await api.http.patch(path, json=change)).json()
    assert {key: changed[key] for key in change} == change
    stale = await api.http.patch(path, json={"description": "x"}, headers={"if-match": f'"{pool["revision"]}"'})
    problem_of(stale, 412, "precondition_failed")
    assert (await api.http.delete(path)).status_code == 204
    problem_of(await api.http.get(path), 404, "not_found")


async def test_drivers_share_as_they_usually_do(api: Api) -> None:
    nfs = {"driver": "nfs", "options": {"path": "/srv/vms", "server": "192.0.2.1", "export": "/export/vms"}}
    assert (await made(api, name="a", **nfs))["shared"] is True
    assert (await made(api, name="b", **nfs, shared=False))["shared"] is False
    assert (await made(api, name="c", shared=True))["shared"] is True


GOOD: list[tuple[str, dict[str, str]]] = [
    ("directory", {"path": "/srv/vms-1/a.b"}),
    ("nfs", {"path": "/srv/nfs", "server": "nfs.example", "export": "/export"}),
    ("nfs", {"path": "/srv/nfs", "server": "[2001:db8::1]", "export": "/export"}),
    ("lvm-thin", {"volume_group": "vg0", "thin_pool": "thin"}),
    ("ceph-rbd", {"pool": "vms", "conf": "/etc/ceph/ceph.conf", "user": "nova", "keyring": "/etc/ceph/k"}),
    ("iscsi", {"portal": "192.0.2.7:3260", "target": "iqn.2026-01.example:disks", "units": "1-8"}),
    ("iscsi", {"portal": "nas", "target": "iqn.2026-01.example:disks", "units": "1,3", "password_file": "/etc/p"}),
    ("nbd", {"address": "/run/nbd.sock", "units": "disk-a,disk-b"}),
    ("nbd", {"address": "192.0.2.7:10809", "units": "a"}),
]


@pytest.mark.parametrize(("driver", "options"), GOOD)
def test_what_a_driver_must_be_told(driver: str, options: dict[str, str]) -> None:
    check(PoolDriver(driver), options)
    for key in options:
        rest = {name: value for name, value in options.items() if name != key}
        if TABLE[PoolDriver(driver)][key].is_needed:
            with pytest.raises(InvalidInput, match=f"options.{key}: is needed"):
                check(PoolDriver(driver), rest)
        else:
            check(PoolDriver(driver), rest)


@pytest.mark.parametrize(
    ("driver", "key", "value"),
    [
        *(("directory", "path", bad) for bad in ("srv", "/", "/srv/../etc", "/srv/", "/a b", "/a,b", "/srv\n", "//a")),
        *(("directory", "path", bad) for bad in ("/a;b", "/a$b", "/ä", "/.", "/a/./b", "")),
        *(("nfs", "server", bad) for bad in ("-o", "a:b", "a/b", "[::1", "")),
        *(("iscsi", "units", bad) for bad in ("a", "1-300", "1/2", ",")),
        *(("lvm-thin", "volume_group", bad) for bad in ("-a", "vg/lv", "../x", "")),
        *(("ceph-rbd", "pool", bad) for bad in ("a:conf=/etc/x", "a/b", "@", "a\\b")),
        *(("iscsi", "target", bad) for bad in ("disks", "iqn.a/b", "iqn.a b")),
        *(("iscsi", "portal", bad) for bad in ("a:b", ":3260", "a,b")),
        ("iscsi", "password", "hunter2"),
        ("directory", "dir", "/srv"),
    ],
)
def test_what_is_no_option(driver: str, key: str, value: str) -> None:
    needed = next(dict(options) for kind, options in GOOD if kind == driver)
    with pytest.raises(InvalidInput) as refused:
        check(PoolDriver(driver), needed | {key: value})
    assert [reason.subject for reason in refused.value.reasons] == [f"options.{key}"]
    assert refused.value.reasons[0].remedy


async def test_a_wrong_option_is_named(api: Api) -> None:
    for body, fields in (
        (FAST | {"options": {}, "shared": True}, ["options.path"]),
        (FAST | {"options": {"path": "relative", "secret": "x"}}, ["options.path", "options.secret"]),
        (FAST | {"driver": "floppy"}, ["driver"]),
        (FAST | {"options": {"path": "/a b"}}, ["options.path"]),
    ):
        assert fields_of(problem_of(await api.http.post("/api/v1/pools", json=body), 422, "invalid_input")) == fields


async def test_a_pool_in_use_stays_where_it_is(api: Api) -> None:
    pool = await made(api)
    vm = (await api.vm()).record
    disk = Disk(volume_id=api.records.new_id(), size_bytes=GIB, pool_id=pool["id"])
    spec = msgspec.structs.replace(vm.spec, disks=(disk,))
    await api.records.change(VMS, vm.id, lambda now: msgspec.structs.replace(now, spec=spec))
    for refused in (
        await api.http.delete("/api/v1/pools/fast"),
        await api.http.patch("/api/v1/pools/fast", json={"options": {"path": "/elsewhere"}}),
    ):
        assert fields_of(problem_of(refused, 409, "conflict")) == ["web-1"]
    assert (await api.http.patch("/api/v1/pools/fast", json={"description": "ours"})).status_code == 200


async def test_a_pool_of_units_may_get_more_of_them(api: Api) -> None:
    told = {"address": "/run/nbd.sock", "units": "a,b"}
    await made(api, name="block", driver="nbd", options=told)
    for name in "xy":
        answer = await api.http.post("/api/v1/volumes", json={"name": name, "size_bytes": GIB, "pool": "block"})
        assert answer.status_code == 202
    full = await api.http.post("/api/v1/volumes", json={"name": "z", "size_bytes": GIB, "pool": "block"})
    assert problem_of(full, 507, "no_room")["reasons"][0]["code"] == "units.short"
    pool = api.records.find(POOLS, "block").record
    ids = {stored.record.name: stored.record.id for stored in api.records.all(VOLUMES)}
    assert spec_for(api.records, pool).options == told | {f"unit.{ids['x']}": "a", f"unit.{ids['y']}": "b"}
    path = "/api/v1/pools/block"
    problem_of(await api.http.patch(path, json={"options": told | {"units": "b,c"}}), 409, "conflict")
    problem_of(
        await api.http.patch(path, json={"options": told | {"address": "/run/x", "units": "a-c"}}), 409, "conflict"
    )
    assert (await api.http.patch(path, json={"options": told | {"units": "a,b,c"}})).status_code == 200
    assert (await api.http.post("/api/v1/volumes", json={"name": "z", "size_bytes": GIB, "pool": "block"})).is_success


async def test_the_default_pool_cannot_go(api: Api) -> None:
    problem_of(await api.http.delete("/api/v1/pools/default"), 409, "conflict")
    moved = await api.http.patch("/api/v1/pools/default", json={"options": {"path": "/elsewhere"}})
    problem_of(moved, 409, "conflict")
    assert (await api.http.patch("/api/v1/pools/default", json={"name": "main"})).json()["name"] == "main"


# -- what nodes find ---------------------------------------------------------------------------------------


class Nodes:
    """Agents that answer one verb: pool.probe."""

    def __init__(self) -> None:
        self.answers: dict[str, PoolFound | NovaCronError] = {}
        self.asked: list[tuple[str, str]] = []

    def is_connected(self, node_id: str) -> bool:
        return True

    def on_progress(self, migration_id: str, listener: object) -> None:
        pass

    async def call(self, node_id: str, args: msgspec.Struct, answer: Any, *, deadline_s: float) -> Any:
        assert isinstance(args, PoolProbe)
        self.asked.append((args.pool.id, node_id))
        said = self.answers[node_id]
        if isinstance(said, NovaCronError):
            raise said
        return said


async def reach_of(api: Api, name: str, nodes: int) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            pool = (await api.http.get(f"/api/v1/pools/{name}")).json()
            if len(pool["reach"]) == nodes:
                return {one["node"]: one for one in pool["reach"]} | {"pool": pool}
            await api.records.caught_up(api.records.revision + 1)


async def test_every_node_is_asked_and_what_it_found_is_shown(api: Api) -> None:
    one, two, gone = await api.node("one"), await api.node("two"), await api.node("gone", state=NodeState.DOWN)
    nodes = Nodes()
    nodes.answers = {
        one.id: PoolFound(available=True, free_bytes=60 * GIB, size_bytes=100 * GIB),
        two.id: Unsupported("/srv/fast is not a directory"),
    }
    prober = Prober(api.records, nodes, _Clock())
    running = asyncio.create_task(prober.run())
    try:
        await reach_of(api, "default", 2)
        await made(api)
        seen = await reach_of(api, "fast", 2)
        assert (seen["one"]["available"], seen["one"]["free_bytes"]) == (True, 60 * GIB)
        assert (seen["two"]["available"], seen["two"]["reason"]) == (False, "/srv/fast is not a directory")
        assert (seen["pool"]["free_bytes"], seen["pool"]["size_bytes"]) == (60 * GIB, 100 * GIB)
        assert gone.id not in {node_id for _, node_id in nodes.asked}
        revision = seen["pool"]["revision"]
        nodes.asked.clear()
        prober.hello(_Hello(two.id))  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            while len(nodes.asked) < 2:
                await asyncio.sleep(0)
        assert {node_id for _, node_id in nodes.asked} == {two.id}
        assert (await api.http.get("/api/v1/pools/fast")).json()["revision"] == revision
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_many_nodes_find_is_written_in_a_few_goes(api: Api) -> None:
    nodes = Nodes()
    for number in range(16):
        node = await api.node(f"n{number}")
        nodes.answers[node.id] = PoolFound(available=True, free_bytes=number * GIB, size_bytes=100 * GIB)
    writes = list[int]()
    stop = api.records.subscribe(lambda seen: writes.extend(one.revision for one in seen if one.kind is POOLS))
    prober = Prober(api.records, nodes, _Clock())
    running = asyncio.create_task(prober.run())
    try:
        seen = await reach_of(api, "default", 16)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        stop()
    assert {seen[f"n{number}"]["free_bytes"] for number in range(16)} == {number * GIB for number in range(16)}
    assert 1 <= len(writes) <= 3


class _Hello(msgspec.Struct):
    node_id: str


def test_only_what_matters_is_written() -> None:
    def reach(free: int, **more: Any) -> Reach:
        return Reach(**({"available": True, "checked_at": NOW, "free_bytes": free, "size_bytes": 1000} | more))

    assert is_news(None, reach(500))
    assert not is_news(reach(500), reach(509))
    assert is_news(reach(500), reach(511))
    assert is_news(reach(500), reach(500, available=False))
    assert is_news(reach(500), reach(500, reason="slow"))


def test_a_shared_pool_is_counted_once() -> None:
    from novacron.control.pools.view import _space

    reach = {
        "a": Reach(available=True, checked_at=NOW, free_bytes=5, size_bytes=10),
        "b": Reach(available=True, checked_at=NOW.replace(year=2027), free_bytes=4, size_bytes=10),
    }
    pool = Pool(id="p", name="p", driver=PoolDriver.NFS, created_at=NOW, updated_at=NOW, shared=True, reach=reach)
    assert _space(pool, list(reach.values())) == {"free_bytes": 4, "size_bytes": 10}
    own = msgspec.structs.replace(pool, shared=False)
    assert _space(own, list(reach.values())) == {"free_bytes": 9, "size_bytes": 20}
