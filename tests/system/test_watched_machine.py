"""A guarded QEMU is seen to live by the watchdog's keeper, from before it begins until it has really ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from novacron.agent import keeper
from tests.system import rom_machine
from tests.system.rom_machine import Hosts, an_id, needs_qemu, until

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


async def test_it_holds_the_lock_for_as_long_as_any_process_of_it_lives(hosts: Hosts) -> None:
    host = hosts.new()
    driver, vm_id, plain_id = host.driver(), an_id(), an_id()
    deadline_s = time.clock_gettime(time.CLOCK_BOOTTIME) + 600.0
    launch = msgspec.structs.replace(host.launch(vm_id), deadline_s=deadline_s)
    lock = os.open(host.root / keeper.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        await driver.start(host.launch(plain_id))
        assert not keeper.is_held(lock)
        report = await driver.start(launch)
        assert (driver.is_watched(vm_id), driver.is_watched(plain_id)) == (True, False)
        await driver.close()  # the agent has gone
        assert keeper.is_held(lock)
        os.kill(report.pid, signal.SIGSTOP)
        assert keeper.is_held(lock)
        rom_machine.kill(report.pid)
        await until(lambda: not keeper.is_held(lock), "the lock is let go of")
    finally:
        os.close(lock)
