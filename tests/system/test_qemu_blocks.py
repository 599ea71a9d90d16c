"""The two sides of a move compared block by block, while the target's guest writes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from novacron.agent.drivers.qemu.blocks import SOCKET
from novacron.errors import MonitorFailed
from novacron.model.blocks import BLOCK_BYTES, Sample, differing
from novacron.model.migration import Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_machine import Hosts, needs_qemu
from tests.system.test_qemu_disks import SIZE, DiskMove
from tests.system.test_qemu_mirror import needs_qemu_img

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu, needs_qemu_img]
ALL = tuple(range(SIZE // BLOCK_BYTES))
MIB = 16  # blocks


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


async def moved(hosts: Hosts, tactics: Tactics = Tactics()) -> DiskMove:  # noqa: B008 (frozen)
    """It runs on the target; its source stands still and was not released."""
    move = DiskMove(hosts, pages=50)
    to = await move.prepare()
    await move.copy(to)
    await move.write(0, "-P 0x21 2M 1M")
    await move.send_all(to, tactics)
    await move.source.open_postcopy(move.vm_id, move.migration_id)
    await move.target.take_over(move.vm_id, move.migration_id, 2, move.volumes)
    await move.source.fetch_rest(move.vm_id, move.migration_id, lambda _: None)
    return move


@pytest.mark.parametrize("strategy", [Strategy.PRECOPY, Strategy.POSTCOPY])
async def test_both_sides_are_alike_but_for_what_the_target_wrote(hosts: Hosts, strategy: Strategy) -> None:
    with postcopy_allowed():
        move = await moved(hosts, Tactics(strategy=strategy))
        for volume_id in move.volumes:
            here = await move.source.digest_blocks(move.vm_id, volume_id, ALL)
            there = await move.target.digest_blocks(move.vm_id, volume_id, ALL, written=True)
            assert (differing(here, there), there.written, len(set(here.digests)) > 1) == ((), (), True)
        await move.write(1, "-P 0x77 40M 1M", at_target=True)
        here = await move.source.digest_blocks(move.vm_id, move.volumes[1], ALL)
        there = await move.target.digest_blocks(move.vm_id, move.volumes[1], ALL, written=True)
        assert there.written == tuple(range(40 * MIB, 41 * MIB))
        assert here.digests != there.digests
        assert differing(here, there) == ()
        assert (await move.target.verify(move.vm_id)).pid
        await move.source.release(move.vm_id, move.migration_id)
        assert not (move.one.root / move.vm_id / SOCKET).exists()


async def test_a_block_that_did_not_come_as_it_left_is_found(hosts: Hosts) -> None:
    move = await moved(hosts)
    volume_id = move.volumes[1]
    await move.target.digest_blocks(move.vm_id, volume_id, (0,), written=True)
    await move.source.digest_blocks(move.vm_id, volume_id, (0,))  # its disks are open again, as for a comparison
    await move.write(1, "-P 0x66 30M 64k")
    drawn = await move.source.sample_blocks(move.vm_id, volume_id, Sample(count=len(ALL), seed="m"))
    assert drawn.blocks == ALL
    there = await move.target.digest_blocks(move.vm_id, volume_id, drawn.blocks, written=True)
    assert differing(drawn, there) == (30 * MIB,)


async def test_a_sample_is_drawn_where_there_is_data_and_the_same_again(hosts: Hosts) -> None:
    move = await moved(hosts)
    wanted = Sample(count=64, seed=move.migration_id)
    drawn = await move.source.sample_blocks(move.vm_id, move.volumes[1], wanted)
    assert drawn == await move.source.sample_blocks(move.vm_id, move.volumes[1], wanted)
    assert len(drawn.blocks) == 64
    assert sum(30 * MIB <= block < 36 * MIB for block in drawn.blocks) >= 48
    other = await move.source.sample_blocks(move.vm_id, move.volumes[1], Sample(count=64, seed="other"))
    assert other.blocks != drawn.blocks


async def test_what_was_not_watched_is_told(hosts: Hosts) -> None:
    move = await moved(hosts)
    await move.target.unwatch(move.vm_id, move.volumes[0])
    await move.target.unwatch(move.vm_id, move.volumes[0])
    with pytest.raises(MonitorFailed, match="since-hand-over"):
        await move.target.digest_blocks(move.vm_id, move.volumes[0], ALL, written=True)
    await move.other.ticking(move.vm_id)
