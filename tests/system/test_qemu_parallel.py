"""Memory over several connections at once: where both QEMUs can without danger, and by one where they cannot."""

from __future__ import annotations

import asyncio

import pytest

from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu.migration import CHANNELS
from novacron.errors import MigrationFailed
from novacron.model.machine import MachineStatus as S
from novacron.model.migration import Goals, Strategy, Tactics
from tests.system.rom_machine import Hosts, an_id, hosts, needs_qemu
from tests.system.rom_move import LOOPBACK, Link, Move, link

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]

ASKED = 4
STREAM = 1  # the connection that is there in any case


async def expected(move: Move) -> int:
    return ASKED if CHANNELS in (await move.source.probe()).features else 1


async def prepared(hosts: Hosts, wire: Link) -> tuple[Move, Reception, int]:
    """A busy machine, where it is awaited, and how many connections its memory must come over."""
    move = Move(hosts)
    await move.source.start(move.launch(move.one))
    await move.one.ticking(move.vm_id)
    wanted = await expected(move)
    to = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, channels=ASKED)
    )
    assert to.channels == wanted
    return move, await wire.lead_to(to), wanted


async def test_it_arrives_whole_over_as_many_as_the_target_says_all_of_them_encrypted() -> None:
    async with hosts() as both, link() as wire:
        move, to, channels = await prepared(both, wire)
        assert (await move.send(to, Tactics(), Goals())).whole
        await move.take_over()
        await move.finish()
        assert len(wire.openings) == 2 * (STREAM + (channels if channels > 1 else 0))
        assert all(first[0] == 0x16 for first in wire.openings)  # TLS: a handshake


async def test_it_goes_on_by_one_from_where_several_brought_it() -> None:
    """What a target was told, its next move as a source is not bound by: post-copy takes one connection alone."""
    async with hosts() as both, link() as wire:
        move, to, _ = await prepared(both, wire)
        await move.send(to, Tactics(), Goals())
        await move.take_over()
        await move.finish()
        third, migration_id = both.new(), an_id()
        driver = third.driver()
        onward = await driver.accept(move.launch(third), Awaited(migration_id=migration_id, host=LOOPBACK))
        await move.target.send(
            move.vm_id, migration_id, onward, Goals(), lambda _: None, Tactics(strategy=Strategy.PRECOPY)
        )
        assert (await driver.take_over(move.vm_id, migration_id, 3)).report.status is S.RUNNING
        await driver.verify(move.vm_id)
        await move.target.release(move.vm_id, migration_id)
        await third.ticking(move.vm_id)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_link_that_is_cut_or_hangs_leaves_it_running(cut: bool) -> None:
    async with hosts() as both, link() as wire:
        move, to, _ = await prepared(both, wire)
        sending = asyncio.create_task(move.send(to, Tactics(), Goals(bandwidth_bytes_per_s=8 << 20)))
        while wire.carried < 2 << 20:
            await asyncio.sleep(0.01)
        if cut:
            await wire.cut(refuse=True)
        else:
            wire.stall()
            await move.source.reclaim(move.vm_id, move.migration_id)
        with pytest.raises(MigrationFailed):
            await sending
        assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
        await move.target.discard(move.vm_id, move.migration_id)
        await move.one.ticking(move.vm_id)
        move.check()
