"""The QEMU driver in post-copy: the switch, the rest, broken links, dead halves, agents that start anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu import incoming, postcopy_probe
from novacron.errors import DeadlineExceeded, DriverError, MachineDied, MigrationFailed, NovaCronError, StateConflict
from novacron.model.machine import MachineStatus
from novacron.model.migration import Goals, Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_machine import Hosts, kill, needs_qemu, until
from tests.system.rom_move import LOOPBACK, Link, Move, link, nothing

S = MachineStatus
POSTCOPY = Tactics(strategy=Strategy.POSTCOPY)
HYBRID = Tactics(strategy=Strategy.HYBRID)
NARROW = Goals(bandwidth_bytes_per_s=40 << 20)  # the guest writes 80 MiB/s
TRICKLE_BYTES_PER_S = 6 << 20  # the rest takes seconds


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    with postcopy_allowed():
        async with rom_machine.hosts() as made:
            if postcopy_probe.FEATURE not in (await made.new().driver().probe()).features:
                pytest.skip("post-copy is not allowed here: vm.unprivileged_userfaultfd is 0")
            yield made


@pytest.fixture
async def wire() -> AsyncIterator[Link]:
    async with link() as made:
        yield made


pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]


async def departed(move: Move, wire: Link | None = None) -> None:
    """The source stands still for its post-copy."""
    to = await move.prepare()
    departure = await move.send(await wire.lead_to(to) if wire else to, POSTCOPY, NARROW)
    assert not departure.whole
    assert (move.at_source(), move.at_target()) == (S.HANDED_OFF, S.INCOMING)


async def opened(move: Move, wire: Link | None = None) -> None:
    """The target could run, and the rest takes its time."""
    await departed(move, wire)
    await trickle(move)
    await move.source.open_postcopy(move.vm_id, move.migration_id)


async def trickle(move: Move) -> None:
    monitor = move.source._fleet.machines[move.vm_id].door()
    await monitor.execute("migrate-set-parameters", {"max-postcopy-bandwidth": TRICKLE_BYTES_PER_S})


async def apart(move: Move, wire: Link | None = None) -> None:
    """The target runs, and much of its memory is still on the source."""
    await opened(move, wire)
    await move.take_over()
    await move.other.ticking(move.vm_id)
    assert move.state(move.source) == "postcopy-active"


async def fetch(move: Move, to: Reception | None = None) -> tuple[bool, str]:
    rest = await move.source.fetch_rest(move.vm_id, move.migration_id, nothing, to)
    return rest.done, rest.why


async def relinked(move: Move, wire: Link) -> Reception:
    return await wire.lead_to(await move.target.reopen(move.vm_id, move.migration_id, LOOPBACK))


# -- there, step by step -----------------------------------------------------------------------------------------


async def test_it_runs_there_before_its_memory_is_there(hosts: Hosts) -> None:
    move = Move(hosts)
    await departed(move)
    await trickle(move)
    assert await move.one.silent(move.vm_id)
    assert move.other.console(move.vm_id) == b""
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    assert (move.at_source(), move.at_target()) == (S.HANDED_OFF, S.INCOMING)
    assert move.other.console(move.vm_id) == b""
    await move.take_over()
    await move.other.ticking(move.vm_id)
    assert move.state(move.source) == "postcopy-active"
    assert await fetch(move) == (True, "")
    assert await move.one.silent(move.vm_id)
    figures = await move.finish()
    assert figures.bytes_transferred
    assert figures.downtime_qemu_ms is not None


async def test_every_step_may_be_asked_for_again(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    for _ in range(2):
        assert not (await move.send(to, POSTCOPY, NARROW)).whole
    for _ in range(2):
        await move.source.open_postcopy(move.vm_id, move.migration_id)
    for _ in range(2):
        await move.take_over()
    for _ in range(2):
        assert await fetch(move) == (True, "")
        await move.source.open_postcopy(move.vm_id, move.migration_id)
        await move.target.verify(move.vm_id)
    await move.finish()


async def test_a_hybrid_that_gets_nowhere_goes_on_in_postcopy(hosts: Hosts) -> None:
    move = Move(hosts)
    departure = await move.send(await move.prepare(), HYBRID, NARROW)
    assert not departure.whole
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert await fetch(move) == (True, "")
    figures = await move.finish()
    assert figures.iterations is not None
    assert figures.iterations > 4


@pytest.mark.parametrize("tactics", [HYBRID, POSTCOPY])
async def test_one_that_is_whole_before_the_switch_has_nothing_left_to_follow(hosts: Hosts, tactics: Tactics) -> None:
    move = Move(hosts, pages=0)
    assert (await move.send(await move.prepare(), tactics, Goals())).whole
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert await fetch(move) == (True, "")
    await move.finish()


async def test_while_the_ownership_moves_it_goes_no_further(hosts: Hosts) -> None:
    move = Move(hosts)
    await departed(move)
    await until(lambda: move.state(move.source) == "pre-switchover", "the last moment")
    assert await move.one.silent(move.vm_id)
    assert move.at_target() is S.INCOMING
    assert move.state(move.target) == "active"
    assert move.state(move.source) == "pre-switchover"
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert await fetch(move) == (True, "")
    await move.finish()


async def test_a_machine_that_was_paused_leaves_whole(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    await move.source.pause(move.vm_id)
    assert (await move.send(to, POSTCOPY, NARROW)).whole


# -- broken links ------------------------------------------------------------------------------------------------


async def test_a_cut_link_is_told_and_another_taken_twice(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts)
    await apart(move, wire)
    to: Reception | None = None
    for _ in range(2):
        rest = asyncio.create_task(move.source.fetch_rest(move.vm_id, move.migration_id, nothing, to))
        carried = wire.carried
        await until(lambda: wire.carried > carried + (1 << 20), "a part of the rest")  # noqa: B023
        await wire.cut()
        seen = await rest
        assert (seen.done, seen.why != "") == (False, True)
        assert move.at_source() is S.HANDED_OFF
        assert move.at_target() is S.RUNNING
        to = await relinked(move, wire)
    assert await fetch(move, to) == (True, "")
    await move.finish()


async def test_a_link_that_stays_down_is_tried_again(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts)
    await apart(move, wire)
    await wire.cut()
    to = await relinked(move, wire)
    await wire.cut(refuse=True)
    for _ in range(2):
        done, why = await fetch(move, to)
        assert (done, "reached" in why) == (False, True)
    assert await fetch(move, await relinked(move, wire)) == (True, "")
    await move.finish()


async def test_a_link_in_which_nothing_moves_is_given_up_for_another(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts, stall_s=0.6)
    await apart(move, wire)
    wire.stall()
    done, why = await fetch(move)
    assert (done, "nothing moved" in why) == (False, True)
    move.source._stall_s = 30.0
    assert await fetch(move, await relinked(move, wire)) == (True, "")
    await move.finish()


async def test_a_target_listens_anew_as_often_as_it_is_asked(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts)
    await apart(move, wire)
    lost = await move.target.reopen(move.vm_id, move.migration_id, LOOPBACK)  # also while the link is whole
    to = await move.target.reopen(move.vm_id, move.migration_id, LOOPBACK)
    assert (to.port != lost.port, to.key_hex) == (True, lost.key_hex)
    assert (await fetch(move, lost))[0] is False
    assert await fetch(move, await relinked(move, wire)) == (True, "")
    with pytest.raises(StateConflict):
        await move.target.reopen(move.vm_id, move.migration_id, LOOPBACK)
    await move.finish()


async def test_a_stranger_does_not_take_the_place_of_the_source(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts)
    await apart(move, wire)
    await wire.cut()
    to = await relinked(move, wire)
    _, writer = await asyncio.open_connection(to.host, to.port)
    writer.write(b"QEVM\x00\x00\x00\x03" + bytes(4096))
    await writer.drain()
    writer.close()
    assert await fetch(move, to) == (True, "")
    await move.finish()


# -- dead halves ---------------------------------------------------------------------------------------------------


async def test_without_its_target_it_is_lost_and_the_source_never_runs(hosts: Hosts) -> None:
    move = Move(hosts)
    await apart(move)
    report = move.target.report(move.vm_id)
    assert report is not None
    kill(report.pid)
    assert (await fetch(move))[0] is False
    with pytest.raises(MachineDied):
        await move.target.reopen(move.vm_id, move.migration_id, LOOPBACK)
    with pytest.raises(NovaCronError):
        await move.source.resume(move.vm_id)
    assert await move.one.silent(move.vm_id)
    assert move.at_source() is S.HANDED_OFF


async def test_without_its_source_nothing_more_can_be_fetched(hosts: Hosts) -> None:
    move = Move(hosts)
    await apart(move)
    report = move.source.report(move.vm_id)
    assert report is not None
    rest = asyncio.create_task(fetch(move))
    kill(report.pid)
    with pytest.raises(MigrationFailed):
        await rest


@pytest.mark.parametrize("ended", ["killed", "discarded"])
async def test_a_target_that_dies_before_the_switch_gives_the_machine_back(hosts: Hosts, ended: str) -> None:
    move = Move(hosts)
    await departed(move)
    report = move.target.report(move.vm_id)
    assert report is not None
    await (move.target.discard(move.vm_id, move.migration_id) if ended == "discarded" else _killed(report.pid))
    with pytest.raises(MigrationFailed):
        await move.source.open_postcopy(move.vm_id, move.migration_id)
    assert move.at_source() is S.HANDED_OFF
    assert await move.one.silent(move.vm_id)
    await _runs_on(move)


async def _killed(pid: int) -> None:
    kill(pid)


async def _runs_on(move: Move) -> None:
    """Taken back, it runs as before, and can be sent again."""
    began = asyncio.get_running_loop().time()
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    assert asyncio.get_running_loop().time() - began < 3.0
    await move.one.ticking(move.vm_id, 30)
    move.check()
    await move.target.discard(move.vm_id, move.migration_id)
    if move.target.report(move.vm_id) is not None:
        await move.target.forget(move.vm_id)
    move.migration_id = rom_machine.an_id()
    to = await move.target.accept(move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK))
    await move.send(to, Tactics(), Goals(max_downtime_ms=0))
    await move.take_over()
    await move.finish()


# -- taken back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["under way", "standing still", "at the last moment"])
async def test_before_it_is_opened_it_can_be_taken_back(hosts: Hosts, moment: str) -> None:
    move = Move(hosts)
    if moment == "under way":
        sending = asyncio.create_task(move.send(await move.prepare(), HYBRID, NARROW))
        await until(lambda: move.state(move.source) == "active", "the stream")
        await _runs_on_while(move, sending)
        return
    await departed(move)
    if moment == "at the last moment":
        await until(lambda: move.state(move.source) == "pre-switchover", "the last moment")
    await _runs_on(move)


@pytest.mark.parametrize("link", ["whole", "broken"])
async def test_opened_for_a_target_that_never_ran_it_can_be_taken_back(hosts: Hosts, link: str) -> None:
    move = Move(hosts)
    await opened(move)
    if link == "broken":
        await move.target.discard(move.vm_id, move.migration_id)
        await until(lambda: move.state(move.source) == "postcopy-paused", "the broken link")
    await _runs_on(move)


async def test_what_reaches_its_target_in_part_is_never_continued_there(
    hosts: Hosts, wire: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "LOAD_DEADLINE_S", 0.5)
    move = Move(hosts)
    await departed(move, wire)
    wire.stall()
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    with pytest.raises(DeadlineExceeded):
        await move.take_over()
    assert move.at_target() is S.INCOMING
    await move.target.discard(move.vm_id, move.migration_id)
    await _runs_on(move)


@pytest.mark.parametrize("after_ms", [0.0, 2.0, 4.0])
async def test_a_link_that_breaks_as_it_is_taken_back(
    hosts: Hosts, wire: Link, monkeypatch: pytest.MonkeyPatch, after_ms: float
) -> None:
    monkeypatch.setattr(incoming, "LOAD_DEADLINE_S", 0.5)
    move = Move(hosts)
    await departed(move, wire)
    wire.stall()
    await move.source.open_postcopy(move.vm_id, move.migration_id)

    async def breaks() -> None:
        await asyncio.sleep(after_ms / 1e3)
        await wire.cut()

    breaking = asyncio.create_task(breaks())
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    await breaking


async def _runs_on_while(move: Move, sending: asyncio.Task[object]) -> None:
    waiting = asyncio.create_task(_runs_on(move))
    with pytest.raises((MigrationFailed, DriverError)):
        await sending
    await waiting


# -- agents that start anew ------------------------------------------------------------------------------------------


async def test_agents_may_die_between_any_two_steps(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    await move.send(to, POSTCOPY, NARROW)
    await trickle(move)
    assert (await move.restart_source()).status is S.HANDED_OFF
    assert await move.one.silent(move.vm_id)
    assert not (await move.send(to, POSTCOPY, NARROW)).whole
    assert (await move.restart_source()).status is S.HANDED_OFF
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    assert (await move.restart_source()).status is S.HANDED_OFF
    assert (await move.restart_target()).status is S.INCOMING
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert (await move.restart_target()).status is S.RUNNING
    assert (await move.restart_source()).status is S.HANDED_OFF
    assert await fetch(move) == (True, "")
    await move.finish()


async def test_agents_may_die_while_the_link_is_down(hosts: Hosts, wire: Link) -> None:
    move = Move(hosts)
    await apart(move, wire)
    await wire.cut()
    assert (await move.restart_source()).status is S.HANDED_OFF
    assert (await move.restart_target()).status is S.RUNNING
    assert (await fetch(move))[0] is False
    to = await relinked(move, wire)
    assert (await move.restart_target()).status is S.RUNNING
    assert await fetch(move, to) == (True, "")
    await move.finish()


async def test_an_agent_that_dies_in_a_hybrid_leaves_it_to_the_next(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    sending = asyncio.create_task(move.send(to, HYBRID, NARROW))
    await until(lambda: move.state(move.source) == "active", "the stream")
    await move.restart_source()
    await asyncio.gather(sending, return_exceptions=True)
    await until(lambda: move.at_source() is S.HANDED_OFF, "the switch")
    assert not (await move.send(to, HYBRID, NARROW)).whole
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert await fetch(move) == (True, "")
    await move.finish()


async def test_an_agent_that_dies_just_before_it_stops_the_guest_leaves_that_to_the_next(hosts: Hosts) -> None:
    move = Move(hosts)
    to = await move.prepare()
    sending = asyncio.create_task(move.send(to, HYBRID, NARROW))
    await until(lambda: move.state(move.source) == "active", "the stream")
    machine = move.source._fleet.machines[move.vm_id]
    await move.source.close()
    await asyncio.gather(sending, return_exceptions=True)
    assert machine.record.transfer is not None
    machine.record.transfer.switching = machine.record.transfer.halted = True
    machine.save()
    await move.restart_source()
    assert not (await move.send(to, HYBRID, NARROW)).whole
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.take_over()
    assert await fetch(move) == (True, "")
    await move.finish()
