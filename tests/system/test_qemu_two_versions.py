"""A machine moves between two versions of QEMU, there and back: NOVACRON_OTHER_QEMU names the other one's binary."""

from __future__ import annotations

import os

import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.model.machine import MachineStatus as S
from novacron.model.migration import Goals
from tests.system.rom_machine import BINARY, TICK, Host, an_id, hosts, needs_qemu, with_spec

OTHER = os.environ.get("NOVACRON_OTHER_QEMU", "")
PAGES, WORKING_SET = 40, 4096

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    needs_qemu,
    pytest.mark.skipif(not OTHER, reason="no second QEMU: set NOVACRON_OTHER_QEMU"),
]


async def test_there_and_back_it_lost_no_tick_and_no_page() -> None:
    async with hosts() as both:
        vm_id, here = an_id(), both.new()
        driver = here.driver()
        facts, others = await driver.probe(), await both.new().driver(binary=OTHER).probe()
        known = [name for name in facts.machine_types if name in others.machine_types and name.startswith("pc-q35")]
        assert facts.version != others.version

        def launch(host: Host) -> Launch:
            wanted = host.launch(vm_id, pages=PAGES, wss=WORKING_SET)
            return with_spec(wanted, machine_type=max(known, key=_version), cpu_model="Nehalem")

        await driver.start(launch(here))
        await here.ticking(vm_id, 10)
        stays = [here]
        for generation, binary in ((2, OTHER), (3, BINARY), (4, OTHER)):
            there, migration_id = both.new(), an_id()
            target = there.driver(binary=binary)
            to = await target.accept(launch(there), Awaited(migration_id=migration_id, host="127.0.0.1"))
            await driver.send(vm_id, migration_id, to, Goals(), lambda _: None)
            assert (await target.take_over(vm_id, migration_id, generation)).report.status is S.RUNNING
            await target.verify(vm_id)
            await driver.release(vm_id, migration_id)
            await there.ticking(vm_id, 2 * WORKING_SET // PAGES)
            stays.append(there)
            driver = target
        ticks = [(int(seq, 16), int(bad, 16)) for host in stays for seq, bad in TICK.findall(host.console(vm_id))]
        assert [seq for seq, _ in ticks] == list(range(1, len(ticks) + 1))
        assert [bad for _, bad in ticks if bad] == []


def _version(machine_type: str) -> tuple[int, ...]:
    return tuple(int(part) for part in machine_type.rsplit("-", 1)[1].split("."))
