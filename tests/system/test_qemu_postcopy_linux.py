"""A target whose main loop waits for a page that does not come: still found, still running, and made whole again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import postcopy_probe
from novacron.errors import DeadlineExceeded
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.model.machine import MachineStatus
from novacron.model.migration import Goals, Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_machine import Hosts, an_id, needs_qemu
from tests.system.rom_move import LOOPBACK, Link, link, nothing
from tests.system.test_qemu_linux import booted, launch, say

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow, needs_qemu]
S = MachineStatus
POSTCOPY = Tactics(strategy=Strategy.POSTCOPY)


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


@pytest.fixture(scope="module")
def guest() -> GuestFiles:
    try:
        return build()
    except LabFailed as failed:
        pytest.skip(f"the Linux guest cannot be built here: {failed}")


async def knock(there: Launch) -> None:
    """Packets for the guest, which QEMU's main loop writes into memory that is not there."""
    ((_, port),) = there.nics[0].forwards
    for _ in range(10):
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(0.3):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                writer.write(b"status\n")


async def test_a_target_that_answers_nothing_is_linked_again(hosts: Hosts, wire: Link, guest: GuestFiles) -> None:
    one, other, migration_id = hosts.new(), hosts.new(), an_id()
    source, target = one.driver(), other.driver()
    what = launch(one, an_id(), guest)
    vm_id = await booted(source, one, what)
    assert await say(what, b"dirty 20 16") == b"ok"
    there = launch(other, vm_id, guest)
    to = await wire.lead_to(await target.accept(there, Awaited(migration_id=migration_id, host=LOOPBACK)))
    await source.send(vm_id, migration_id, to, Goals(bandwidth_bytes_per_s=40 << 20), nothing, POSTCOPY)
    trickle: dict[str, object] = {"max-postcopy-bandwidth": 300_000}
    await source._fleet.machines[vm_id].door().execute("migrate-set-parameters", trickle)
    await source.open_postcopy(vm_id, migration_id)
    await target.take_over(vm_id, migration_id, 2)
    await wire.cut()
    await asyncio.gather(*(knock(there) for _ in range(4)))
    machine = target._fleet.machines[vm_id]
    with contextlib.suppress(DeadlineExceeded):  # the most likely answer here
        await machine.door().execute("query-status", deadline_s=0.5)
    assert (await machine.refresh()).status is S.RUNNING
    assert not (await source.fetch_rest(vm_id, migration_id, nothing)).done
    await source._fleet.machines[vm_id].door().execute("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
    to = await wire.lead_to(await target.reopen(vm_id, migration_id, LOOPBACK))
    assert (await source.fetch_rest(vm_id, migration_id, nothing, to)).done
    assert (await target.verify(vm_id)).reason == ""
    await source.release(vm_id, migration_id)
    assert await say(there, b"check") == b"0"
