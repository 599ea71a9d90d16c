"""The driver contract: snapshots of a machine whose process lives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, Driver, FileAt, Launch
from novacron.errors import DriverError, NotFound, StateConflict, Unsupported
from novacron.model.machine import MachineStatus, StopMode
from novacron.model.snapshot import Consistency
from tests.contract.test_driver import Bed, Heard, Place, QemuBed, bed, status
from tests.system import rom_machine

pytestmark = pytest.mark.anyio
S = MachineStatus
__all__ = ["bed"]


class Disked:
    """A machine with one disk on the bed's first host."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.vm_id = rom_machine.an_id()
        self.place: Place = bed.one
        self._path = folder / f"{rom_machine.an_id()}.qcow2"
        if isinstance(bed, QemuBed):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(self._path), "16M"], check=True)

    def launch(self) -> Launch:
        disk = DiskFile(volume_id=self._path.stem, source=FileAt(self._path), format="qcow2")
        return msgspec.structs.replace(self.place.launch(self.vm_id), disks=(disk,))

    async def started(self) -> Driver:
        driver = self.place.agent()
        await driver.start(self.launch())
        return driver


@pytest.fixture
def disked(bed: Bed, tmp_path: Path) -> Disked:
    return Disked(bed, tmp_path)


async def test_a_machine_runs_on_while_its_snapshot_is_taken_and_deleted(disked: Disked) -> None:
    driver, snapshot = await disked.started(), rom_machine.an_id()
    for memory, kind in ((False, Consistency.CRASH), (True, Consistency.MEMORY)):
        taken = await driver.take_snapshot(disked.vm_id, snapshot, memory=memory)
        assert taken.consistency is kind
        assert bool(taken.memory_bytes) is memory
        again = await driver.take_snapshot(disked.vm_id, snapshot, memory=memory)
        assert (again.consistency, again.memory_bytes) == (taken.consistency, taken.memory_bytes)
        await driver.delete_snapshot(disked.vm_id, snapshot)
        await driver.delete_snapshot(disked.vm_id, snapshot)
        assert status(driver, disked.vm_id) is S.RUNNING


async def test_a_machine_runs_again_from_a_snapshot_with_memory_alone(disked: Disked) -> None:
    driver, full, bare = await disked.started(), rom_machine.an_id(), rom_machine.an_id()
    await driver.take_snapshot(disked.vm_id, full, memory=True)
    await driver.take_snapshot(disked.vm_id, bare)
    with pytest.raises(StateConflict):
        await driver.restore(disked.launch(), full)
    await driver.stop(disked.vm_id, StopMode.FORCED, 0)
    with pytest.raises(Unsupported):
        await driver.restore(disked.launch(), bare)
    assert status(driver, disked.vm_id) in (S.ABSENT, S.STOPPED)
    heard = Heard(driver)
    assert (await driver.restore(disked.launch(), full)).status is S.RUNNING
    assert heard.statuses[-1] is S.RUNNING


async def test_what_a_pool_cannot_do_beside_is_not_taken(disked: Disked) -> None:
    driver, snapshot = await disked.started(), rom_machine.an_id()

    async def broken() -> None:
        raise DriverError("the pool is gone")

    with pytest.raises(DriverError, match="the pool is gone"):
        await driver.take_snapshot(disked.vm_id, snapshot, beside=broken)
    assert status(driver, disked.vm_id) is S.RUNNING
    done: list[bool] = []

    async def whole() -> None:
        done.append(True)

    await driver.take_snapshot(disked.vm_id, snapshot, beside=whole)
    assert done == [True]
    assert status(driver, disked.vm_id) is S.RUNNING


async def test_nobody_can_freeze_a_guest_without_an_agent(disked: Disked) -> None:
    driver = await disked.started()
    with pytest.raises(Unsupported) as refused:
        await driver.take_snapshot(disked.vm_id, rom_machine.an_id(), quiesce=True)
    assert refused.value.reasons[0].remedy
    assert status(driver, disked.vm_id) is S.RUNNING


async def test_snapshots_of_a_machine_that_is_not_here_are_not_found(bed: Bed) -> None:
    driver = bed.one.agent()
    with pytest.raises(NotFound):
        await driver.take_snapshot(rom_machine.an_id(), rom_machine.an_id())
    with pytest.raises(NotFound):
        await driver.delete_snapshot(rom_machine.an_id(), rom_machine.an_id())
