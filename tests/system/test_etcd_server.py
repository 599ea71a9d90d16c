"""The server on etcd: it moves there from its file with everything, survives its members, takes no other store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.etcd_members import Members, members
from tests.system.test_server import refused, running

pytestmark = [pytest.mark.anyio, pytest.mark.system]
PATIENCE_S = 30.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path / "etcd", 3) as started:
        yield started


def novacron(*words: str) -> str:
    """What the command says; it must succeed."""
    command = [sys.executable, "-m", "novacron.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_server_moves_to_etcd_with_all_it_knows(tmp_path: Path, cluster: Members) -> None:
    where = str(cluster.address())
    async with running(tmp_path) as server:
        async with server.client() as http:
            made = (await http.post("/api/v1/images", json={"name": "tiny"})).json()
        await server.end()
    novacron("store", "migrate", "--from", f"sqlite:{tmp_path}/data/store.db", "--to", where)
    async with running(tmp_path, "--store", where) as server, server.client() as http:
        assert server.said == [f"ready {server.url}"], "no first token: it knows the one of before"
        moved = (await http.get("/api/v1/images/tiny")).json()
        assert {**moved, "revision": 0} == {**made, "revision": 0}
        assert moved["revision"] > made["revision"]
        async with connect(
            server.url.replace("http", "ws") + "/api/v1/events",
            additional_headers={"authorization": f"Bearer {server.token}"},
        ) as socket:
            await socket.send('{"t": "subscribe"}')
            assert '"ready"' in str(await socket.recv())
            for place in range(3):
                cluster.kill(place)
                assert (await http.post("/api/v1/images", json={"name": f"i-{place}"})).status_code == 201
                async with asyncio.timeout(PATIENCE_S):
                    while f'"i-{place}"' not in str(await socket.recv()):
                        pass
                cluster.start(place)
                await cluster.up(place)
        backup = tmp_path / "backup"
        assert "records" in novacron("store", "backup", "--from", where, str(backup))
        await server.end()
    said = await refused(tmp_path)
    assert "the store is another one" in said
    assert "store.seen" in said
    restored = str(cluster.address("restored"))
    novacron("store", "restore", str(backup), "--to", restored)
    assert "was restored from a backup" in await refused(tmp_path, "--store", restored)
    (tmp_path / "data" / "store.seen").unlink()
    async with running(tmp_path, "--store", restored) as server, server.client() as http:
        names = {image["name"] for image in (await http.get("/api/v1/images")).json()["items"]}
        assert names == {"tiny", "i-0", "i-1", "i-2"}


async def test_a_wrong_store_is_named(tmp_path: Path) -> None:
    assert "not loopback, without ca" in await refused(tmp_path, "--store", "etcd://db1.example")
