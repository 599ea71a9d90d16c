"""Networks through the production control plane on simulated nodes: who is told what, when, and what a move does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.network.memory import merged
from novacron.control.migrations.reachable import gap
from novacron.control.networks import weaver
from novacron.control.networks.weaver import Weaver
from novacron.control.store.kinds import MIGRATIONS, NETWORKS, NODES, SECURITY_GROUPS, VMS
from novacron.control.store.records import remove
from novacron.errors import NodeUnreachable, Unsupported
from novacron.model.machine import NetworkKind, Nic
from novacron.model.migration import MigrationState
from novacron.model.network import (
    Direction,
    Flow,
    Location,
    Network,
    NetworkSpec,
    NetworkState,
    Protocol,
    Rule,
    SecurityGroup,
)
from novacron.wire.moving import Departed, TakeOver
from novacron.wire.network import NetworkApply
from tests.sim.house import TICK_S, House, house

pytestmark = pytest.mark.anyio


async def network(h: House, name: str = "web") -> str:
    network_id = h.records.new_id()
    now = h.clock.wall()
    spec = NetworkSpec(id=network_id, vni=4096 + len(h.records.all(NETWORKS)), ipv4="10.20.0.0/24")
    await h.records.create(NETWORKS, Network(id=network_id, name=name, spec=spec, created_at=now, updated_at=now))
    return network_id


def card(h: House, network_id: str, last: int, *groups: str) -> Nic:
    return Nic(
        id=h.records.new_id(),
        mac=f"52:4e:43:00:00:{last:02x}",
        network=NetworkKind.OVERLAY,
        network_id=network_id,
        addresses=(f"10.20.0.{last}",),
        security_groups=groups,
    )


async def group(h: House, name: str, *rules: Rule) -> str:
    now = h.clock.wall()
    made = SecurityGroup(id=h.records.new_id(), name=name, rules=rules, created_at=now, updated_at=now)
    await h.records.create(SECURITY_GROUPS, made)
    return made.id


def places(h: House, node: str, network_id: str) -> dict[str, tuple[str, int]]:
    """By MAC: behind which node this node believes the card to be, and under which generation."""
    known = h.cluster[node].networks.known.get(network_id)
    return {mac: (one.endpoint, one.generation) for mac, one in known.locations.items()} if known else {}


def tunnel(h: House, node: str) -> str:
    return h.cluster[node].tunnel_address


async def test_nodes_with_a_card_on_it_know_every_card_and_others_know_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        one = await h.running_vm("a", card(h, web, 2))
        two = await h.running_vm("b", card(h, web, 3))
        wanted = {"52:4e:43:00:00:02": (tunnel(h, "a"), 1), "52:4e:43:00:00:03": (tunnel(h, "b"), 1)}
        await h.until(lambda: places(h, "a", web) == places(h, "b", web) == wanted, "both are told")
        assert h.cluster["c"].networks.heard == []
        known = h.cluster["a"].networks.known[web]
        assert set(known.endpoints) == {tunnel(h, "a"), tunnel(h, "b")}
        assert {one, two} == {place.vm_id for place in known.locations.values()}


async def test_the_last_card_takes_its_network_along(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("b", card(h, web, 3))
        await h.until(lambda: len(places(h, "b", web)) == 2, "told")
        h.cluster["a"].networks.plugged.clear()
        await h.records.commit(remove(VMS, h.records.find(VMS, vm_id)))
        await h.until(lambda: web not in h.cluster["a"].networks.known, "forgotten")
        await h.until(lambda: len(places(h, "b", web)) == 1, "told")


async def test_a_move_reaches_every_node_at_once(tmp_path: Path) -> None:
    """From the commit on nobody waits for a timer."""
    async with house(tmp_path, nodes="abcd") as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("c", card(h, web, 3))
        await h.running_vm("d", card(h, web, 4))
        committed_at: list[float] = []

        def look(_: object) -> None:
            if h.vm(vm_id).generation == 2 and not committed_at:
                committed_at.append(h.clock.monotonic_s())

        stop = h.records.subscribe(look)
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        stop()
        for node in "abcd":
            heard = zip(h.cluster[node].networks.heard, h.cluster[node].networks.heard_at_s, strict=True)
            told_at = [at for verb, at in heard if any(one.generation == 2 for one in verb.state.locations)]
            assert told_at[0] - committed_at[0] < 2 * TICK_S, node  # the clock may tick between two steps of ours
        await h.until(lambda: web not in h.cluster["a"].networks.known, "the source has no card on it any more")


async def test_the_target_has_the_network_before_the_machine_comes(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        h.cluster["b"].lose("network.apply", error=Unsupported("no VXLAN here"), times=1000)
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
        problem = h.migration(migration_id).problem
        assert problem is not None
        assert problem.message == "no VXLAN here"
        assert vm_id not in h.cluster["b"].host.machines
        h.cluster["b"]._lost.clear()
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


async def test_an_older_state_never_wins(tmp_path: Path) -> None:
    """What a server that was cut off still sends, after its successor has moved a machine."""
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("c", card(h, web, 3))
        await h.until(lambda: len(places(h, "c", web)) == 2, "told")
        stale = h.cluster["c"].networks.heard[-1]
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        moved = (tunnel(h, "b"), 2)
        await h.until(lambda: places(h, "c", web)["52:4e:43:00:00:02"] == moved, "told")
        node_id = h.cluster["c"].node_id
        await h.cluster.call(node_id, stale, type(None), deadline_s=5)
        assert places(h, "c", web)["52:4e:43:00:00:02"] == moved
        newer = msgspec.structs.replace(stale.state, revision=h.records.revision + 1000)
        await h.cluster.call(node_id, NetworkApply(state=newer), type(None), deadline_s=5)
        assert places(h, "c", web)["52:4e:43:00:00:02"] == moved  # the generation decides, whoever counts revisions


async def test_a_node_that_was_away_is_told_when_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("c", card(h, web, 3))
        await h.until(lambda: len(places(h, "c", web)) == 2, "told")
        await h.cluster.disconnect("c")
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert places(h, "c", web)["52:4e:43:00:00:02"] == (tunnel(h, "a"), 1)
        await h.cluster.connect("c")
        await h.until(lambda: places(h, "c", web)["52:4e:43:00:00:02"] == (tunnel(h, "b"), 2), "told")


async def test_a_node_that_lost_everything_is_told_everything(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        await h.running_vm("a", card(h, web, 2))
        await h.until(lambda: bool(places(h, "a", web)), "told")
        await h.cluster.disconnect("a")
        h.cluster["a"].networks.known.clear()  # its disk is new; nothing has changed in the records
        await h.cluster.connect("a")
        await h.until(lambda: bool(places(h, "a", web)), "told again")


async def test_what_went_away_while_a_node_or_the_server_was_away_is_forgotten(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.until(lambda: bool(places(h, "a", web)), "told")
        await h.cluster.disconnect("a")
        await h.kill_worker("weaver")
        h.cluster["a"].networks.plugged.clear()
        await h.records.commit(remove(VMS, h.records.find(VMS, vm_id)))
        await h.records.commit(remove(NETWORKS, h.records.find(NETWORKS, web)))
        h.start_worker("weaver")
        await h.cluster.connect("a")
        await h.until(lambda: web not in h.cluster["a"].networks.known, "forgotten")


async def test_a_new_server_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("c", card(h, web, 3))
        await h.kill_worker("weaver")
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        h.start_worker("weaver")
        await h.until(lambda: places(h, "c", web).get("52:4e:43:00:00:02") == (tunnel(h, "b"), 2), "told")


async def test_a_node_that_comes_while_a_new_server_begins_keeps_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        webs = [await network(h, name) for name in ("one", "two", "three")]
        for number, web in enumerate(webs, 2):
            await h.running_vm("a", card(h, web, number))
        await h.until(lambda: all(places(h, "a", web) for web in webs), "told")
        await h.cluster.disconnect("a")
        await h.kill_worker("weaver")
        h.cluster["a"].networks.plugged.clear()
        h.cluster["a"].lose("network.forget", error=NodeUnreachable("lost"), times=1)

        async def slowly(things: Iterable[str], every: int) -> AsyncIterator[str]:
            for thing in things:
                yield thing
                await h.cluster.connect("a")
                await asyncio.sleep(0.01)  # what its hello begins goes on

        monkeypatch.setattr(weaver, "breathing", slowly)
        heard = len(h.cluster["a"].networks.heard)
        h.start_worker("weaver")
        await h.until(lambda: len(h.cluster["a"].networks.heard) >= heard + 3, "told anew")
        await h.clock.advance(2)
        assert len(h.cluster["a"]._lost) == 1  # it was told to forget nothing


async def test_what_is_not_told_is_tried_again_and_what_is_newer_does_not_wait(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        await h.running_vm("c", card(h, web, 3))
        await h.until(lambda: len(places(h, "c", web)) == 1, "told")
        h.cluster["c"].lose("network.apply", error=NodeUnreachable("lost"), times=8)
        await h.running_vm("a", card(h, web, 2))
        await h.until(lambda: len(h.cluster["c"]._lost) == 2, "tries")
        began_s = h.clock.monotonic_s()
        h.cluster["c"]._lost.clear()
        await h.running_vm("a", card(h, web, 4))  # within its patience of many seconds
        await h.until(lambda: len(places(h, "c", web)) == 3, "told")
        assert h.clock.monotonic_s() - began_s < 5


async def test_a_vm_on_no_network_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as h:
        await network(h)
        considered: list[Any] = []
        monkeypatch.setattr(Weaver, "_consider", lambda self, ids: considered.append(ids))
        vm_id = await h.running_vm("a")
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert considered == []


async def test_what_concerns_no_node_is_not_told(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.until(lambda: bool(places(h, "a", web)), "told")
        heard = len(h.cluster["a"].networks.heard)
        await h.records.change(VMS, vm_id, lambda vm: msgspec.structs.replace(vm, description="new"))
        await h.records.change(NETWORKS, web, lambda one: msgspec.structs.replace(one, description="new"))
        await h.clock.advance(5)
        assert len(h.cluster["a"].networks.heard) == heard


# -- filters -----------------------------------------------------------------------------------------------


def told_filter(h: House, node: str, network_id: str, mac: str) -> Any:
    return h.cluster[node].networks.heard[-1].state.filters.get(mac)


async def test_changed_rules_and_members_reach_the_cards(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        clients = await group(h, "clients")
        servers = await group(h, "servers", Rule(direction=Direction.IN, protocol=Protocol.TCP, group_id=clients))
        await h.running_vm("a", card(h, web, 2, servers))
        mac = "52:4e:43:00:00:02"

        def cidrs() -> list[str]:
            return [rule.cidr for rule in told_filter(h, "a", web, mac).rules]

        await h.until(lambda: bool(h.cluster["a"].networks.heard), "told")
        assert told_filter(h, "a", web, mac).stateful
        assert cidrs() == []
        client = await h.running_vm("b", card(h, web, 9, clients))
        await h.until(lambda: cidrs() == ["10.20.0.9/32"], "a member more")
        first = told_filter(h, "a", web, mac).revision
        await h.records.change(
            SECURITY_GROUPS,
            servers,
            lambda one: msgspec.structs.replace(one, rules=(Rule(direction=Direction.IN, cidr="192.0.2.0/24"),)),
        )
        await h.until(lambda: cidrs() == ["192.0.2.0/24"], "another rule")
        assert told_filter(h, "a", web, mac).revision > first
        assert "52:4e:43:00:00:09" not in h.cluster["a"].networks.heard[-1].state.filters  # that card is elsewhere
        migration_id = await h.migrate(client, "a")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        await h.until(lambda: told_filter(h, "a", web, "52:4e:43:00:00:09") is not None, "its filter came along")


async def test_a_machine_is_started_with_its_networks_and_filters(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        servers = await group(h, "servers", Rule(direction=Direction.OUT))
        vm_id = await h.running_vm("a", card(h, web, 2, servers))
        spec = h.cluster["a"].host.machines[vm_id].launch.spec
        assert [one.id for one in spec.networks] == [web]
        (nic,) = spec.nics
        assert nic.filter is not None
        assert (nic.filter.stateful, nic.filter.addresses) == (True, ("10.20.0.2",))
        assert nic.filter.rules == (Rule(direction=Direction.OUT),)
        assert nic.filter.revision > 0


async def test_a_node_that_gets_a_tunnel_address_is_woven_in(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        await h.running_vm("a", card(h, web, 2))
        await h.running_vm("b", card(h, web, 3))
        await h.until(lambda: len(places(h, "a", web)) == 2, "told")
        h.cluster["b"].tunnel_address = "192.0.2.77"
        await h.cluster.disconnect("b")
        await h.cluster.connect("b")
        await h.until(lambda: places(h, "a", web)["52:4e:43:00:00:03"] == ("192.0.2.77", 1), "told")
        assert h.records.find(NODES, "b").record.facts is not None


# -- what a move does to the network -----------------------------------------------------------------------


async def test_the_gap_is_measured_from_a_third_node(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        await h.running_vm("c", card(h, web, 3))
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        figures = h.migration(migration_id).figures
        assert figures.network_checked_by == h.cluster["c"].node_id
        assert figures.network_gap_ms is not None
        assert figures.downtime_stopped_ms is not None
        assert 0 <= figures.network_gap_ms < 1000
        assert figures.bytes_transferred  # what the source counted is beside it


async def test_without_a_third_node_the_source_is_asked(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert h.migration(migration_id).figures.network_checked_by == h.cluster["a"].node_id


async def test_a_guest_that_does_not_answer_is_a_note_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        monkeypatch.setattr(h.cluster["a"].networks, "_answers", lambda *_: False)
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        migration = h.migration(migration_id)
        assert migration.figures.network_gap_ms is None
        assert any("did not answer" in line and "10.20.0.2" in line for line in migration.explanation)


async def test_a_checker_that_fails_is_a_note_and_no_failure(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        h.cluster["a"].lose("network.ping")
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert any("could not be checked" in line for line in h.migration(migration_id).explanation)


def test_the_way_of_the_call_is_halved() -> None:
    assert gap(stopped_at_s=10.0, asked_at_s=10.01, heard_at_s=10.05, answered_after_ms=20.0) == pytest.approx(40.0)
    assert gap(stopped_at_s=10.0, asked_at_s=10.01, heard_at_s=10.02, answered_after_ms=20.0) == pytest.approx(30.0)


async def test_conversations_travel_from_the_source_to_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(
        mac="52:4e:43:00:00:02",
        protocol=Protocol.TCP,
        address="10.20.0.2",
        port=80,
        peer_address="192.0.2.9",
        peer_port=5,
        left_s=60,
    )
    async with house(tmp_path) as h:
        web = await network(h)
        vm_id = await h.running_vm("a", card(h, web, 2))
        taken: list[TakeOver] = []
        call = h.cluster.call

        async def overheard(node_id: str, args: Any, answer: Any, *, deadline_s: float) -> Any:
            if isinstance(args, TakeOver):
                taken.append(args)
            answered = await call(node_id, args, answer, deadline_s=deadline_s)
            if isinstance(answered, Departed):
                answered = msgspec.structs.replace(answered, flows=(flow,))
            return answered

        monkeypatch.setattr(h.cluster, "call", overheard)
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert [verb.flows for verb in taken] == [(flow,)]
        stored = [h.records.all(kind) for kind in (VMS, MIGRATIONS)]
        assert flow.peer_address.encode() not in msgspec.json.encode(
            stored
        )  # whom a guest talks to is nobody's business


def test_a_location_of_an_older_generation_is_the_agents_to_refuse() -> None:
    """The rule the simulated nodes keep is the real agent's own."""
    spec = NetworkSpec(id="n", vni=1)
    new = Location(mac="m", vm_id="v", generation=2, endpoint="b")
    old = Location(mac="m", vm_id="v", generation=1, endpoint="a")
    known = merged(None, NetworkState(spec=spec, revision=5, locations=(new,)))
    assert merged(known, NetworkState(spec=spec, revision=6, locations=(old,))).locations["m"] is new
