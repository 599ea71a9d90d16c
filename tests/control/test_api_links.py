"""Links over the API: measured by hand and before large moves, never by a plan; what is unknown stops nothing."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from novacron.control.migrations.decide import LIVE_FEATURES, STREAM_PROXY
from novacron.control.migrations.history import Probes, is_known, link
from novacron.control.store.kinds import LINKS, MIGRATIONS, NODES, VMS
from novacron.model.link import LinkFigure
from novacron.model.machine import MachineStatus
from novacron.model.migration import Figures, Goals, Migration, MigrationKind, MigrationState, Strategy
from novacron.model.node import Node, NodeState
from novacron.wire.link import LinkFound, LinkProbe
from tests.control.api import NOW, Api, fields_of, problem_of

MIB = 1 << 20
PROBES = "/api/v1/link-probes"
SLOW = LinkFound(rate_bytes_per_s=10.0 * MIB, rtt_ms=40.0, sent_bytes=10 * MIB)


async def _world(api: Api, memory_mib: int = 2048) -> tuple[Node, Node]:
    source, target = await api.node("node-1"), await api.node("node-2")

    def given(old: Node) -> Node:
        assert old.facts is not None
        driver = msgspec.structs.replace(old.facts.drivers[0], features=(*LIVE_FEATURES, STREAM_PROXY))
        facts = msgspec.structs.replace(old.facts, drivers=(driver,), migration_address="192.0.2.1")
        return msgspec.structs.replace(old, facts=facts)

    for node in (source, target):
        await api.records.change(NODES, node.id, given)
    vm = (await api.vm(node=source, status=MachineStatus.RUNNING)).record
    spec = msgspec.structs.replace(vm.spec, memory_mib=memory_mib)
    await api.records.change(VMS, vm.id, lambda old: msgspec.structs.replace(old, spec=spec))
    return source, target


async def _probe(api: Api, **body: Any) -> Any:
    answer = await api.http.post(PROBES, json={"source_node": "node-1", "target_node": "node-2", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _begin(api: Api) -> Any:
    answer = await api.http.post("/api/v1/migrations", json={"vm": "web-1"})
    assert answer.status_code == 202, answer.text
    return answer.json()


def _bursts(api: Api) -> list[int]:
    return [call.bytes_per_s for call in api.agents.calls if isinstance(call, LinkProbe)]


@pytest.mark.anyio
async def test_by_hand_it_is_recorded_with_its_age_and_replaced(api: Api) -> None:
    await _world(api)
    api.agents.link = SLOW
    first = await _probe(api)
    assert (first["rate_bytes_per_s"], first["rtt_ms"], first["why"]) == (10.0 * MIB, 40.0, "")
    api.agents.link = msgspec.structs.replace(SLOW, rate_bytes_per_s=5.0 * MIB)
    assert (await _probe(api, bandwidth_bytes_per_s=5 * MIB))["is_capped"] is True
    assert _bursts(api) == [0, 5 * MIB]
    body, key = {"source_node": "node-1", "target_node": "node-2"}, {"idempotency-key": "k"}
    for _ in range(2):
        assert (await api.http.post(PROBES, json=body, headers=key)).json()["why"] == ""
    assert _bursts(api) == [0, 5 * MIB, 0]
    (known,) = (await api.http.get("/api/v1/nodes/node-2/links")).json()["items"]
    assert (known["source_node"], known["target_node"], known["rate_bytes_per_s"]) == ("node-1", "node-2", 5.0 * MIB)
    assert 0 <= known["age_s"] < 60


@pytest.mark.anyio
async def test_a_large_move_measures_a_link_of_which_nothing_fresh_is_known_and_takes_the_way_for_it(api: Api) -> None:
    source, _ = await _world(api)
    api.agents.link = SLOW
    plan = (await api.http.get("/api/v1/vms/web-1/migration-plan")).json()
    assert _bursts(api) == []  # a plan changes nothing and is quick
    assert any("assumed" in words for words in plan["nodes"][1]["explanation"])
    made = await _begin(api)
    assert _bursts(api) == [0]
    assert made["transport"] == "proxy"
    assert any("link: 10 MiB/s, measured 0 min ago, round trip 40.0 ms" in words for words in made["explanation"])
    await api.records.change(
        MIGRATIONS, made["id"], lambda old: msgspec.structs.replace(old, state=MigrationState.FAILED)
    )
    vm = api.records.all(VMS)[0].record
    await api.records.change(VMS, vm.id, lambda old: msgspec.structs.replace(old, migration_id=""))
    await _begin(api)
    assert _bursts(api) == [0]  # it is known by now
    assert source.id == api.records.all(LINKS)[0].record.source_node


@pytest.mark.anyio
async def test_a_small_move_measures_nothing(api: Api) -> None:
    await _world(api, memory_mib=512)
    api.agents.link = SLOW
    await _begin(api)
    assert _bursts(api) == []


@pytest.mark.anyio
async def test_what_cannot_be_measured_is_unknown_with_its_reason_and_stops_no_migration(api: Api) -> None:
    await _world(api)
    found = await _probe(api)
    assert (found["rate_bytes_per_s"], found["measured_at"]) == (None, None)
    assert "does not answer in time" in found["why"]
    assert api.records.all(LINKS) == []
    made = await _begin(api)
    assert any("the link to node-2 was not measured" in words for words in made["explanation"])


@pytest.mark.anyio
async def test_while_a_stream_uses_a_node_nothing_is_measured(api: Api) -> None:
    await _world(api)
    made = await _begin(api)
    api.agents.calls.clear()
    api.agents.link = SLOW
    under_way = {"state": MigrationState.TRANSFERRING, "began": ("accept",)}
    await api.records.change(MIGRATIONS, made["id"], lambda old: msgspec.structs.replace(old, **under_way))
    assert (await _probe(api))["why"] == f"migration {made['id']} is under way there"
    assert api.agents.calls == []


@pytest.mark.anyio
async def test_bad_requests_and_a_node_that_goes(api: Api) -> None:
    _, target = await _world(api)
    for source_node, target_node, field in (
        ("node-1", "node-1", "target_node"),
        ("node-1", "nowhere", "target_node"),
        ("nowhere", "node-1", "source_node"),
    ):
        body = {"source_node": source_node, "target_node": target_node}
        problem = problem_of(await api.http.post(PROBES, json=body), 422, "invalid_input")
        assert fields_of(problem) == [field]
    api.agents.link = SLOW
    await _probe(api)
    await api.records.change(NODES, target.id, lambda old: msgspec.structs.replace(old, state=NodeState.DOWN))
    assert (await api.http.delete("/api/v1/nodes/node-2")).status_code == 204
    assert api.records.all(LINKS) == []


# -- what a probe is worth beside moves --------------------------------------------------------------------

HOUR = datetime.timedelta(hours=1)


def _moved(at: datetime.datetime, mib_per_s: float) -> Migration:
    figures = Figures(bytes_transferred=500 * MIB, rate_bytes_per_s=mib_per_s * MIB)
    return Migration(
        id="m", vm_id="v", vm_name="v", kind=MigrationKind.LIVE, strategy=Strategy.PRECOPY, source_node="a",
        target_node="b", generation=1, state=MigrationState.COMPLETED, created_at=at, updated_at=at, goals=Goals(),
        figures=figures,
    )  # fmt: skip


def _probes(at: datetime.datetime, mib_per_s: float, cap_mib: int = 0) -> Probes:
    figure = LinkFigure(
        id="l", source_node="b", target_node="a", created_at=at, at=at, rate_bytes_per_s=mib_per_s * MIB, rtt_ms=1.0,
        sent_bytes=MIB, cap_bytes_per_s=cap_mib * MIB,
    )  # fmt: skip
    return Probes(figures=(figure,), now=NOW)


def test_moves_count_more_than_a_probe_unless_they_are_old() -> None:
    def expected(moves: list[Migration], probes: Probes) -> float:
        return round(link(moves, "a", "b", Goals(), probes).rate.expected / MIB)

    assert expected([], _probes(NOW - 9 * HOUR, 20)) == 20
    assert expected([_moved(NOW - HOUR / 2, 50)], _probes(NOW, 20)) == 50
    assert expected([_moved(NOW - 2 * HOUR, 50)], _probes(NOW, 20)) == 20
    assert expected([_moved(NOW - 2 * HOUR, 50)], _probes(NOW - 3 * HOUR, 20)) == 50
    assert expected([], _probes(NOW, 20, cap_mib=20)) == 100  # it came to its cap: nothing is known
    assert expected([], _probes(NOW, 5, cap_mib=20)) == 5
    assert "the last 3 h ago" in link([_moved(NOW - 3 * HOUR, 50)], "a", "b", Goals(), Probes(now=NOW)).basis


def test_what_is_known_of_a_link_goes_stale() -> None:
    assert not is_known([], "a", "b", Probes(now=NOW))
    assert is_known([_moved(NOW - HOUR / 2, 50)], "a", "b", Probes(now=NOW))
    assert not is_known([_moved(NOW - 2 * HOUR, 50)], "a", "b", Probes(now=NOW))
    assert is_known([], "a", "b", _probes(NOW, 20))
    assert not is_known([], "a", "b", _probes(NOW - 2 * HOUR, 20))
    assert not is_known([], "a", "c", _probes(NOW, 20))
    capped = _probes(NOW, 20, cap_mib=20)
    assert not is_known([], "a", "b", capped)
    assert is_known([], "a", "b", capped, cap=10 * MIB)
    assert not is_known([], "a", "b", capped, cap=30 * MIB)
