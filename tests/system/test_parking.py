"""Parked machines and their copies: running at once from where the parent stood, with memory they share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.qemu import QemuDriver
from novacron.agent.parking import Parking
from novacron.errors import NotFound, NovaCronError
from novacron.model.machine import MachineStatus
from tests.system.rom_machine import NOBODY, Host, an_id, hosts, needs_qemu, with_spec

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]


class Park:
    """A host with a machine that ticks and may be parked."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.driver: QemuDriver = host.driver()
        self.parking = Parking(host.root)
        self.parent = an_id()

    def launch(self, vm_id: str, parent_id: str = "") -> Launch:
        launch = with_spec(self.host.launch(vm_id, pages=2, wss=2048), shared_memory=True, parent_id=parent_id)
        return self.parking.outfitted(launch)

    async def park(self) -> int:
        """The last tick of the parent."""
        report = await self.driver.park(self.parent, self.parking.state(self.parent))
        assert (report.status, report.pid) == (MachineStatus.PARKED, 0)
        return self.host.ticks(self.parent)[-1][0]


@pytest.fixture
async def park() -> AsyncIterator[Park]:
    async with hosts(NOBODY if os.geteuid() == 0 else None) as all_hosts:
        made = Park(all_hosts.new())
        await made.driver.start(made.launch(made.parent))
        await made.host.ticking(made.parent, 20)
        yield made


async def test_copies_go_on_where_the_parked_one_stood(park: Park) -> None:
    last = await park.park()
    copies = [an_id() for _ in range(3)]
    for copy in copies:
        begun = await park.driver.start(park.launch(copy, park.parent))
        assert begun.status is MachineStatus.RUNNING
    park.parking.clear(park.parent)  # what they map stays theirs
    for copy in copies:
        await park.host.ticking(copy, 20)
        ticks = park.host.ticks(copy)
        assert last < ticks[0][0] <= last + 2  # it did not boot: it went on
        assert {bad for _, bad in ticks} == {0}  # its memory is whole, whatever the others write
    with pytest.raises(NotFound, match="is not parked"):
        park.launch(an_id(), park.parent)


async def test_a_parked_machine_is_known_to_the_next_agent(park: Park) -> None:
    await park.park()
    await park.driver.close()
    (found,) = await park.host.driver().adopt([park.host.root / park.parent])
    assert found.status is MachineStatus.PARKED


async def test_nobody_but_the_agent_gets_to_the_memory_by_its_name(park: Park) -> None:
    seen = (park.host.root / ".parked").stat()
    assert (seen.st_mode & 0o077, seen.st_uid) == (0, os.geteuid())


async def test_a_copy_that_was_cut_off_is_ended_by_the_next_agent_and_begins_anew(park: Park) -> None:
    await park.park()
    copy = an_id()
    launch = park.launch(copy, park.parent)
    await park.driver.start(launch)
    machine = park.driver._fleet.machines[copy]
    machine.record.copying = True  # as it is until it has an identity of its own
    machine.save()
    await park.driver.close()
    after = park.host.driver()
    (found,) = await after.adopt([launch.run_dir])
    assert found.status is MachineStatus.ABSENT
    assert (await after.start(launch)).status is MachineStatus.RUNNING
    assert len(park.host.pids()) == 1
    await park.host.ticking(copy)


async def test_what_cannot_be_parked_runs_on(park: Park) -> None:
    in_the_way = park.parking.state(park.parent).with_name(".state")
    in_the_way.mkdir()
    with pytest.raises(NovaCronError, match="cannot be opened"):
        await park.driver.park(park.parent, park.parking.state(park.parent))
    await park.host.ticking(park.parent)
    in_the_way.rmdir()
    await park.park()


async def test_a_parked_machine_boots_anew_and_its_copies_do_not_notice(park: Park) -> None:
    await park.park()
    copy = an_id()
    await park.driver.start(park.launch(copy, park.parent))
    await park.driver.start(park.launch(park.parent))
    await park.host.ticking(park.parent, 10)
    await park.host.ticking(copy, 10)
    assert {bad for _, bad in park.host.ticks(copy)} == {0}
