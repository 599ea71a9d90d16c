"""A real machine on a disk of every kind of pool: it starts as its own user, and its pool knows that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

import msgspec
import pytest

from novacron.agent.drivers.handoff import Awaited
from novacron.agent.storage import keys
from novacron.errors import StateConflict
from novacron.model.machine import Disk, MachineStatus, StopMode
from novacron.model.migration import Goals
from tests.system.rom_machine import NOBODY, an_id, hosts, needs_qemu, with_spec
from tests.system.servers.backends import KINDS, MIB, VOLUMES, Backend, Servers, qemu_io, started

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]

UID = NOBODY if os.geteuid() == 0 else None


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if kind.is_slow else []) for name, kind in KINDS.items()]
)
def backend(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Backend]:
    kind = KINDS[request.param]
    if kind.missing:
        pytest.skip(kind.missing)
    with started(kind, servers) as one:
        yield one


async def test_a_machine_runs_on_it_as_its_own_user(backend: Backend) -> None:
    async with hosts(UID) as made:
        host, vm_id = made.new(), an_id()
        disk = await backend.pool.ensure_volume(Disk(volume_id=VOLUMES[0], size_bytes=8 * MIB), uid=UID, gid=UID)
        launch = host.launch(vm_id)
        mine = keys.place(disk, launch.run_dir, UID)
        driver = host.driver()
        report = await driver.start(msgspec.structs.replace(launch, disks=(mine,)))
        assert report.status is MachineStatus.RUNNING
        await host.ticking(vm_id)
        if backend.sees_use:
            with pytest.raises(StateConflict):
                await backend.pool.remove_volume(VOLUMES[0])
        await driver.stop(vm_id, StopMode.FORCED, 5.0)
    await backend.pool.take_snapshot(VOLUMES[0], an_id())  # at rest again
    assert "Pattern" not in await asyncio.to_thread(qemu_io, disk, backend.directory, "read -P 0 0 64k")


async def test_a_machine_moves_with_its_disk_where_it_is(backend: Backend) -> None:
    """Both ends have it open at once, and each has its own copy of the pool's secret."""
    async with hosts(UID) as made:
        ends, vm_id, migration_id = (made.new(), made.new()), an_id(), an_id()
        drivers = [host.driver() for host in ends]
        launches = []
        for host in ends:
            disk = await backend.pool.ensure_volume(
                Disk(volume_id=VOLUMES[0], size_bytes=8 * MIB), uid=UID, gid=UID, in_use=host is not ends[0]
            )
            launch = host.launch(vm_id)
            mine = keys.place(disk, launch.run_dir, UID)
            launches.append(msgspec.structs.replace(launch, disks=(mine,)))
        started_as = await drivers[0].start(launches[0])
        pins = {"machine_type": started_as.machine_type, "cpu_model": started_as.cpu_model}
        to = await drivers[1].accept(
            with_spec(launches[1], **pins), Awaited(migration_id=migration_id, host="127.0.0.1")
        )
        await drivers[0].send(vm_id, migration_id, to, Goals(), lambda _: None)
        arrived = await drivers[1].take_over(vm_id, migration_id, 2)
        assert arrived.report.status is MachineStatus.RUNNING
        await drivers[0].release(vm_id, migration_id)
        await ends[1].ticking(vm_id)


async def test_a_machine_cannot_read_the_secret_of_its_pool(backend: Backend) -> None:
    """Only its own copy of it, which goes with its directory."""
    disk = await backend.pool.ensure_volume(Disk(volume_id=VOLUMES[0], size_bytes=8 * MIB), uid=UID, gid=UID)
    run_dir = backend.directory / "run"
    run_dir.mkdir(mode=0o700)
    for _ in range(2):
        mine = keys.place(disk, run_dir, UID)
    if mine == disk:
        assert list(run_dir.iterdir()) == []
        return
    (copy,) = run_dir.iterdir()
    assert copy.stat().st_mode & 0o777 == 0o400
    assert UID is None or copy.stat().st_uid == UID
    assert str(copy) in str(mine.source)
