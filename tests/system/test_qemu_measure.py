"""Measuring before a move, on real QEMU: a guest that writes a known amount is seen to, and runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from novacron.errors import NotFound, StateConflict
from novacron.model.machine import StopMode
from tests.system import rom_machine
from tests.system.rom_machine import Hosts, an_id, needs_qemu

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
MIB = 1 << 20


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


async def test_what_a_guest_writes_is_seen_and_it_runs_on(hosts: Hosts) -> None:
    """20 pages a tick, round a set of 32 MiB: its own ticks meanwhile say how many."""
    host, vm_id = hosts.new(), an_id()
    driver = host.driver()
    await driver.start(host.launch(vm_id, memory_mib=64, pages=20, wss=8192))
    await host.ticking(vm_id, 20)
    before = len(host.ticks(vm_id))
    seen = await driver.measure(vm_id)
    written = (len(host.ticks(vm_id)) - before) * 20 * 4096
    assert seen.memory_bytes // MIB == 64
    assert written * 0.3 <= seen.dirtied_bytes <= written * 1.3  # a machine under load ticks on while it is looked at
    assert 10 * MIB < seen.memory_used_bytes <= 64 * MIB
    await host.ticking(vm_id, 3)
    assert all(bad == 0 for _, bad in host.ticks(vm_id))
    again = await driver.measure(vm_id)  # QEMU is left so that it can
    assert again.dirtied_bytes > 0


async def test_an_idle_guest_writes_next_to_nothing_and_uses_what_it_touched(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    driver = host.driver()
    await driver.start(host.launch(vm_id, memory_mib=256))
    await host.ticking(vm_id)
    seen = await driver.measure(vm_id)
    assert seen.dirtied_bytes <= 2 * MIB
    assert seen.memory_used_bytes < 128 * MIB


async def test_one_that_stands_still_writes_nothing_and_one_that_ended_is_not_measured(hosts: Hosts) -> None:
    host, vm_id = hosts.new(), an_id()
    driver = host.driver()
    with pytest.raises(NotFound):
        await driver.measure(vm_id)
    await driver.start(host.launch(vm_id, memory_mib=64, pages=20, wss=8192))
    await host.ticking(vm_id, 5)
    await driver.pause(vm_id)
    assert (await driver.measure(vm_id)).dirtied_bytes == 0
    await driver.stop(vm_id, StopMode.FORCED, 0.0)
    with pytest.raises(StateConflict):
        await driver.measure(vm_id)
