"""Several servers over one store: one leads, its death and its sleep cost seconds and do no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from novacron.control.leader import BEAT_KEY, TERM_KEY, Leader, Term, read_stand
from novacron.control.store.base import Delete, Put
from novacron.control.store.kinds import NODES
from novacron.control.store.sqlite import SqliteStore
from novacron.model import leadership
from novacron.model.leadership import ALONE, STANDARD, Candidate, Lead, Sighting, Stand
from novacron.model.migration import MigrationState
from novacron.model.node import NodeState
from novacron.model.vm import VmState
from novacron.testing.hand_clock import START, HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.wire.agent import Call, Reply
from tests.sim.servers import servers

pytestmark = pytest.mark.anyio

FAILOVER_S = 5.0


async def test_one_of_three_leads_and_moves_machines(tmp_path: Path) -> None:
    async with servers(tmp_path) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a")
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"
        assert len(cluster.leaders()) == 1
        assert {node.record.state for node in h.records.all(NODES)} == {NodeState.UP}


async def test_a_killed_leader_is_followed_within_five_seconds_and_its_migration_goes_on(tmp_path: Path) -> None:
    async with servers(tmp_path, transfer_s=8.0) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a")
        done = _performed(h.cluster["a"])
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: h.migration(migration_id).state is MigrationState.TRANSFERRING, "it streams")
        leader = await cluster.a_leader()
        killed_s = h.clock.monotonic_s()
        await cluster.kill(leader)
        other = await cluster.a_leader(leader)
        assert h.clock.monotonic_s() - killed_s < FAILOVER_S
        assert other.leader.term is not None
        assert other.leader.term.number == 2
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert done.count("migration.send") == 1, "the stream was not begun anew"
        assert await h.check_peace(vm_id) == "b"


async def test_a_clean_end_hands_over_at_once(tmp_path: Path) -> None:
    async with servers(tmp_path, transfer_s=8.0) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a")
        done = _performed(h.cluster["a"])
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: h.migration(migration_id).state is MigrationState.TRANSFERRING, "it streams")
        leader = await cluster.a_leader()
        await cluster.stop(leader)
        ended_s = h.clock.monotonic_s()
        await cluster.a_leader(leader)
        assert h.clock.monotonic_s() - ended_s <= STANDARD.look_s + 0.1
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert done.count("migration.send") == 1, "the end of one server did not end the stream"
        assert await h.check_peace(vm_id) == "b"


async def test_what_was_told_while_nobody_led_is_known_to_the_next(tmp_path: Path) -> None:
    async with servers(tmp_path) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a")
        leader = await cluster.a_leader()
        await cluster.kill(leader)
        h.cluster["a"].host.crash(vm_id, "gone")
        await h.clock.advance(1.0)
        await cluster.a_leader(leader)
        led_s = h.clock.monotonic_s()
        await h.until(lambda: h.vm(vm_id).problem is not None or h.state(vm_id) is not VmState.RUNNING, "it is seen")
        assert h.clock.monotonic_s() - led_s < 1.0, "not with the node's next complete report"


async def test_two_never_lead_at_the_same_time(tmp_path: Path) -> None:
    async with servers(tmp_path) as cluster:
        h = cluster.house
        for _ in range(4):
            leader = await cluster.a_leader()
            leader.frost.freeze()
            end_s = h.clock.monotonic_s() + 2 * STANDARD.wait_s
            while h.clock.monotonic_s() < end_s:
                await h.clock.advance(0.05)
                assert len(cluster.leaders()) <= 1
            leader.frost.thaw()
            await h.clock.settle()
            assert len(cluster.leaders()) <= 1


async def test_a_leader_that_slept_takes_nothing_its_successor_does_for_silence(tmp_path: Path) -> None:
    """Thawed, it finds that nobody has spoken to it for longer than nodes and migrations are given."""
    async with servers(tmp_path, transfer_s=60.0) as cluster:
        h = cluster.house
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: h.migration(migration_id).state is MigrationState.TRANSFERRING, "it streams")
        leader = await cluster.a_leader()
        leader.frost.freeze()
        await h.clock.advance(40.0)
        told = []
        h.records.subscribe(lambda seen: told.extend(seen))
        leader.frost.thaw()
        await h.clock.advance(1.0)
        changed = [change.now for change in told if change.kind is NODES]
        assert changed == [], "no node was taken for lost"
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert h.migration(migration_id).problem is None


async def test_a_write_in_the_midst_of_which_the_leader_slept_changes_nothing(tmp_path: Path) -> None:
    """A node is silent to the leader alone. What the leader makes of it has left the server, rightly, when it falls
    asleep, and reaches the store when another leads, to whom the node speaks. The node's record is as it was read.
    """
    async with servers(tmp_path, by_line=True) as cluster:
        h = cluster.house
        await h.until(lambda: len(h.records.all(NODES)) == 2, "both nodes are known")
        node_id = h.cluster["a"].node_id
        leader = await cluster.a_leader()
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def at_door(ops: Sequence[Put | Delete]) -> None:
            if any(one.key == NODES.key(node_id) for one in ops):
                arrived.set()
                await go_on.wait()

        leader.store.at_door = at_door
        await leader.cut_off("a")
        await h.until(arrived.is_set, "the leader takes the node for suspect")
        leader.frost.freeze()
        await cluster.a_leader(leader)
        states: list[NodeState] = []
        h.records.subscribe(lambda seen: states.extend(one.now.state for one in seen if one.kind is NODES))
        go_on.set()
        await h.clock.advance(1.0)
        leader.frost.thaw()
        await h.clock.advance(1.0)
        assert NodeState.SUSPECT not in states, "nor did another have to put it right"


def _performed(agent: SimAgent) -> list[str]:
    """The verbs that the agent does from now on."""
    done: list[str] = []
    perform = agent.verbs.perform

    async def noted(call: Call) -> Reply:
        done.append(call.verb)
        return await perform(call)

    agent.verbs.perform = noted  # type: ignore[method-assign]
    return done


# -- the election alone ------------------------------------------------------------------------------------


def stood(since_s: float, *, server_id: str = "x", resigned: bool = False) -> Sighting:
    lead = Lead(term=3, server_id=server_id, name="x", process_id="p", since=START, resigned=resigned)
    return Sighting(Stand(lead, 10, 20), since_s)


ME = Candidate("me", "me", "q")


def test_who_may_lead() -> None:
    nearly = STANDARD.wait_s - 0.001
    assert leadership.may_lead(Sighting(Stand(), 0.0), ME, 0.0, STANDARD), "nobody ever led"
    assert not leadership.may_lead(stood(0.0), ME, nearly, STANDARD)
    assert leadership.may_lead(stood(0.0), ME, STANDARD.wait_s, STANDARD)
    assert leadership.may_lead(stood(0.0, resigned=True), ME, 0.0, STANDARD)
    assert leadership.may_lead(stood(0.0, server_id="me"), ME, 0.0, STANDARD), "the process before it is gone"
    assert leadership.may_lead(stood(0.0), ME, 0.0, ALONE), "no other can have the store open"
    assert STANDARD.lease_s < STANDARD.wait_s < FAILOVER_S - 2 * STANDARD.look_s


def test_a_record_that_moves_is_counted_anew() -> None:
    first = leadership.sighted(None, stood(0).stand, 1.0)
    assert leadership.sighted(first, stood(0).stand, 9.0).since_s == 1.0
    assert leadership.sighted(first, Stand(stood(0).stand.lead, 10, 21), 9.0).since_s == 9.0


async def test_one_server_leads_at_once_and_writes_no_beats(tmp_path: Path) -> None:
    clock = HandClock()
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    await store.commit([Put(TERM_KEY, msgspec.json.encode(stood(0).stand.lead))])
    terms: list[Term] = []

    async def work(term: Term) -> None:
        terms.append(term)
        await asyncio.Event().wait()

    leading = asyncio.create_task(Leader(store, clock, ME, ALONE).run(work))
    async with asyncio.timeout(5):
        while not terms:
            await asyncio.sleep(0)
    revision = await store.revision()
    await clock.advance(3600.0)
    assert terms[0].holds()
    assert (terms[0].number, await store.revision()) == (4, revision)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert not terms[0].holds()
    lead = (await read_stand(store)).lead
    assert lead is not None
    assert lead.resigned
    await store.close()


async def test_a_leader_gives_up_by_its_own_clock_before_another_may_lead(tmp_path: Path) -> None:
    async with servers(tmp_path, "xy") as cluster:
        h = cluster.house
        leader = await cluster.a_leader()
        silent = asyncio.Event()

        async def at_door(ops: Sequence[Put | Delete]) -> None:
            if any(one.key == BEAT_KEY for one in ops):
                await silent.wait()  # the store does not answer it

        leader.store.at_door = at_door
        while leader.leads:
            await h.clock.advance(0.05)
        assert cluster.leaders() == []
        await cluster.a_leader(leader)
        silent.set()
