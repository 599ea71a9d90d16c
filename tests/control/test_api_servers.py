"""Which servers there are, as each of them says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from novacron.clock import Clock, SystemClock
from novacron.config import ServerConfig
from novacron.control import premises
from novacron.control.house import place_of
from novacron.control.joining import authority
from novacron.control.leader import Leader, Term
from novacron.control.roster import FORGOTTEN_AFTER_S, SILENT_AFTER_S, Roster
from novacron.control.store.base import Put
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import InvalidInput
from novacron.model.leadership import ALONE, STANDARD, Candidate
from novacron.testing.hand_clock import HandClock
from tests.control.api import Api, another, problem_of

pytestmark = pytest.mark.anyio

ONE, TWO = (Candidate(f"0190b36e-0000-7000-8000-00000000000{n}", f"s{n}", f"p{n}") for n in (1, 2))


async def _idle(_term: Term) -> None:
    await asyncio.Event().wait()


async def test_each_server_lists_all(api: Api, tmp_path: Path) -> None:
    async with another(api, tmp_path / "other") as other:
        async with asyncio.timeout(10):
            while len(found := (await other.http.get("/api/v1/servers")).json()["items"]) < 2:
                await asyncio.sleep(0.01)
        assert {one["state"] for one in found} == {"up"}
        assert {(one["leads"], one["term"], one["leads_since"]) for one in found} == {(False, None, None)}
        mine = (await api.http.get("/api/v1/servers")).json()
        assert [one["id"] for one in mine["items"]] == [one["id"] for one in found]
        assert mine["next_cursor"] is None
    problem_of(await api.client(None).get("/api/v1/servers"), 401, "unauthenticated")


async def _roster(store: SqliteStore, clock: Clock, me: Candidate) -> tuple[Roster, asyncio.Task[None]]:
    made = Roster(store, clock, me, f"http://{me.name}", STANDARD)
    return made, asyncio.create_task(made.run())


async def test_who_leads_who_is_silent_who_has_left(tmp_path: Path) -> None:
    clock = HandClock()
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    one, one_task = await _roster(store, clock, ONE)
    two, two_task = await _roster(store, clock, TWO)
    leading = asyncio.create_task(Leader(store, clock, TWO, STANDARD).run(_idle))

    async def seen_by(roster: Roster, last_s: float) -> list[tuple[str, bool, bool]]:
        """What it lists after so much more time; the store's thread takes none of it."""
        end_s = clock.monotonic_s() + last_s
        while clock.monotonic_s() < end_s:
            await clock.advance(0.25)
            await store.commit([Put("scratch", b"")])  # after it, what was asked of the store before is done
        listed = await roster.servers()
        return [(s.presence.name, s.is_up, s.lead is not None) for s in listed]

    assert await seen_by(one, SILENT_AFTER_S * 2) == [("s1", True, False), ("s2", True, True)]
    for task in (two_task, leading):  # its clean end hands over; then it says nothing more, and is still in the list
        task.cancel()
    await asyncio.gather(two_task, leading, return_exceptions=True)
    assert await seen_by(one, SILENT_AFTER_S + 4) == [("s1", True, False), ("s2", False, False)]
    await two.leave()
    assert await seen_by(one, 1) == [("s1", True, False)]
    one_task.cancel()
    await asyncio.gather(one_task, return_exceptions=True)
    await store.close()


async def test_nodes_are_told_where_the_living_are(tmp_path: Path) -> None:
    clock = HandClock()
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    places = {ONE.server_id: "https://s1:1", TWO.server_id: "https://s2:1"}
    one, two = (Roster(store, clock, me, "", STANDARD, places[me.server_id]) for me in (ONE, TWO))
    silent = Candidate(ONE.server_id[:-1] + "3", "s3", "p3")
    nowhere = Roster(store, clock, silent, "http://127.0.0.1:1", STANDARD)
    running = [asyncio.create_task(roster.run()) for roster in (two, nowhere)]
    async with asyncio.timeout(5):
        while len(one.living()) < 3:
            await one.servers()
            await asyncio.sleep(0.001)
    assert {place.id: place.address for place in one.places()} == places
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await clock.advance(SILENT_AFTER_S + 1)
    assert [place.address for place in one.places()] == ["https://s1:1"]
    await store.close()


def test_a_server_is_told_at_no_address_that_its_certificate_does_not_name(tmp_path: Path) -> None:
    made = authority.init(tmp_path, ["s1.example.org", "192.0.2.1"], SystemClock().wall())

    def place(**changed: Any) -> str:
        wish = {"data_dir": tmp_path, "pool_dir": tmp_path, "cluster_dir": tmp_path, "host": "0.0.0.0", **changed}
        config = ServerConfig(**wish)
        return place_of(config, f"https://{config.host}:1", made)

    assert place(advertise="https://S1.example.org:1") == "https://S1.example.org:1"
    assert place() == ""
    assert [place(host=host) for host in ("192.0.2.1", "192.0.2.2")] == ["https://192.0.2.1:1", ""]
    for wrong in ({"advertise": "https://s2.example.org:1"}, {"host": "192.0.2.2", "mdns": True}):
        with pytest.raises(InvalidInput, match="advertise") as refused:
            place(**wrong)
        assert "issue-server" in refused.value.reasons[0].remedy


async def test_one_that_is_silent_for_a_day_is_forgotten(tmp_path: Path) -> None:
    clock = HandClock()
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    gone = Roster(store, clock, TWO, "", ALONE)
    saying = asyncio.create_task(gone.run())
    async with asyncio.timeout(5):
        while await store.get(f"servers/{TWO.server_id}") is None:
            await asyncio.sleep(0.001)
    saying.cancel()
    here = Roster(store, clock, ONE, "", STANDARD)
    assert [one.presence.name for one in await here.servers()] == ["s2"]
    await clock.advance(FORGOTTEN_AFTER_S + 1)
    await here.servers()
    assert await here.servers() == []
    await store.close()


def test_a_data_directory_is_one_servers(tmp_path: Path) -> None:
    premises.prepare(ServerConfig(data_dir=tmp_path / "data", pool_dir=tmp_path / "pool"))
    made = ONE.server_id
    with premises.taken(tmp_path / "data"):
        assert premises.server_id(tmp_path / "data", made) == made
        with pytest.raises(InvalidInput, match="another server uses"), premises.taken(tmp_path / "data"):
            pass
    with premises.taken(tmp_path / "data"):
        assert premises.server_id(tmp_path / "data", TWO.server_id) == made, "it is the same server"
    (tmp_path / "data" / "server.id").write_text("")
    with pytest.raises(InvalidInput, match="server's id"):
        premises.server_id(tmp_path / "data", made)
