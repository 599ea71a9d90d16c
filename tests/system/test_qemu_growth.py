"""A guest with a kernel sees what is plugged in and lets go of what leaves; content and conversations survive moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.drivers.base import Launch, NicPlug
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import adjust, difference
from novacron.errors import StateConflict
from novacron.lab.guest.build import GuestFiles
from novacron.model.machine import HOT_SLOT, Nic
from novacron.model.migration import Goals
from tests.ports import free_port
from tests.system import rom_machine
from tests.system.rom_machine import Hosts, an_id, needs_qemu, with_spec
from tests.system.test_qemu_adjust import MIB, hot, moved, with_disks
from tests.system.test_qemu_linux import booted, guest, launch, say

__all__ = ["guest"]
pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
BLOCKS = 64


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


def with_nics(what: Launch, *nics: Nic) -> Launch:
    """The launch with its first card and these."""
    first = Nic(id="n", mac="52:54:00:12:34:56", slot=1)
    plugs = tuple(NicPlug(nic_id=nic.id, mac=nic.mac, forwards=((9, free_port()),)) for nic in nics)
    return msgspec.structs.replace(with_spec(what, nics=(first, *nics)), nics=(what.nics[0], *plugs))


async def hardware(what: Launch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await say(what, b"hardware"))
    return found


async def sees(what: Launch, **wanted: Any) -> None:
    """Wait until the guest has noticed."""
    seen: dict[str, Any] = {}
    for _ in range(200):
        seen = await hardware(what)
        if all(seen[key] == value for key, value in wanted.items()):
            return
    raise AssertionError(f"the guest sees {seen}, not {wanted}")


async def test_a_disk_and_a_card_plugged_in_move_with_their_content(
    hosts: Hosts, guest: GuestFiles, tmp_path: Path
) -> None:
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()
    plain = launch(one, an_id(), guest)
    vm_id = await booted(source, one, plain)
    disks = hot(0, 8), hot(1, 8)
    cards = tuple(Nic(id=f"n{n}", mac=f"52:54:00:00:00:0{n}", slot=HOT_SLOT + n) for n in range(2))
    wished = with_disks(with_nics(plain, *cards), tmp_path, *disks)
    done = await source.adjust(wished)
    assert done.pending == ()
    await sees(plain, cards=3, disks={"sda": 8 * MIB, "sdb": 8 * MIB})
    assert await say(plain, b"write sdb 0 %d 7" % BLOCKS) == b"ok"

    fewer = with_disks(with_nics(plain, cards[1]), tmp_path, disks[1])  # the first of each leaves again
    done = await source.adjust(fewer)
    assert (done.pending, done.now.disks, len(done.now.nics)) == ((), (disks[1],), 2)
    await sees(plain, cards=2, disks={"sdb": 8 * MIB})

    there = launch(other, vm_id, guest)
    there = with_disks(with_nics(there, cards[1]), tmp_path, disks[1])
    await moved(vm_id, source, target, there)
    assert await say(there, b"compare sdb 0 %d 7" % BLOCKS) == b"0"
    grown = msgspec.structs.replace(disks[1], size_bytes=16 * MIB)
    done = await target.adjust(with_disks(with_nics(there, *cards), tmp_path, disks[0], grown))
    assert done.pending == ()
    await sees(there, cards=3, disks={"sda": 8 * MIB, "sdb": 16 * MIB})
    assert await say(there, b"compare sdb 0 %d 7" % BLOCKS) == b"0"


@pytest.fixture
def grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node with KVM: what is not safe under TCG (see difference.EMULATED) is all the same done, on guests that
    have just begun and keep quiet.
    """
    monkeypatch.setattr(difference, "EMULATED", "")


@pytest.mark.usefixtures("grows")
async def test_vcpus_come_and_the_machine_moves_with_them(hosts: Hosts) -> None:
    """With the guest that has no kernel: a Linux that brings up the second of them makes QEMU abort under TCG."""
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()
    plain = with_spec(one.launch(an_id(), memory_mib=128), max_vcpus=4)
    vm_id = plain.spec.vm_id
    await source.start(plain)
    await one.ticking(vm_id)
    done = await source.adjust(with_spec(plain, vcpus=3))
    assert (done.pending, done.now.vcpus) == ((), 3)
    there = with_spec(other.launch(vm_id, memory_mib=128), max_vcpus=4, vcpus=3)
    await moved(vm_id, source, target, there)
    await other.ticking(vm_id)
    done = await target.adjust(with_spec(there, vcpus=8))
    assert [reason.code for reason in done.pending] == ["vcpus.limit"]
    assert done.now.vcpus == 4
    monitor = target._fleet.machines[vm_id].door()
    assert sum("qom-path" in cpu for cpu in await monitor.execute("query-hotpluggable-cpus")) == 4


@pytest.mark.usefixtures("grows")
async def test_memory_comes_and_goes_and_the_machine_moves_with_it(hosts: Hosts, guest: GuestFiles) -> None:
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()
    plain = with_spec(launch(one, an_id(), guest), memory_mib=384, max_memory_mib=1024)
    vm_id = await booted(source, one, plain)
    had = (await hardware(plain))["memory_mib"]
    done = await source.adjust(with_spec(plain, memory_mib=512))
    assert (done.pending, done.now.memory_mib, done.now.dimms_mib) == ((), 512, (128,))
    await sees(plain, memory_mib=had + 128)
    there = with_spec(launch(other, vm_id, guest), memory_mib=512, max_memory_mib=1024, dimms_mib=(128,))
    await moved(vm_id, source, target, there)
    await sees(there, memory_mib=had + 128)
    done = await target.adjust(with_spec(there, memory_mib=768))
    assert (done.pending, done.now.dimms_mib) == ((), (128, 256))
    await sees(there, memory_mib=had + 384)
    done = await target.adjust(with_spec(there, memory_mib=512))
    assert (done.pending, done.now.memory_mib) == ((), 512)
    await sees(there, memory_mib=had + 128)


async def test_a_guest_that_does_not_answer_keeps_its_card(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjust, "GUEST_DEADLINE_S", 0.3)
    host = hosts.new()
    driver = host.driver()
    nic = Nic(id="n", mac="52:54:00:00:00:01", slot=HOT_SLOT)
    plug = NicPlug(nic_id="n", mac=nic.mac, forwards=((9, free_port()),))
    plain = host.launch(an_id(), memory_mib=128)
    wished = msgspec.structs.replace(with_spec(plain, nics=(nic,)), nics=(plug,))
    await driver.start(plain)
    assert (await driver.adjust(wished)).now.nics == (nic,)
    done = await driver.adjust(plain)
    assert [(reason.code, reason.subject) for reason in done.pending] == [("guest.keeps", "n")]
    assert done.now.nics == (nic,)
    await host.ticking(plain.spec.vm_id)


async def test_an_emulated_machine_does_not_grow_as_it_runs_and_says_why(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    plain = with_spec(host.launch(an_id(), memory_mib=128), max_vcpus=4, max_memory_mib=1024)
    await driver.start(plain)
    done = await driver.adjust(with_spec(plain, vcpus=2, memory_mib=256))
    assert {(reason.code, reason.subject) for reason in done.pending} == {
        ("tcg.keeps", "vcpus"),
        ("tcg.keeps", "memory_mib"),
    }
    assert (done.now.vcpus, done.now.memory_mib) == (1, 128)


async def test_a_card_the_guest_lets_go_of_late_is_told(
    hosts: Hosts, guest: GuestFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjust, "GUEST_DEADLINE_S", 0.0)
    host = hosts.new()
    driver = host.driver()
    plain = launch(host, an_id(), guest)
    vm_id = await booted(driver, host, plain)
    card = Nic(id="late", mac="52:54:00:00:00:01", slot=HOT_SLOT)
    assert (await driver.adjust(with_nics(plain, card))).pending == ()
    await sees(plain, cards=2)
    done = await driver.adjust(with_nics(plain))
    assert [reason.code for reason in done.pending] == ["guest.keeps"]
    heard: list[int] = []
    driver.subscribe(lambda report: heard.append(report.let_go))
    await rom_machine.until(lambda: heard, "the guest lets go")
    other = hosts.new().driver()
    there = with_nics(launch(hosts.all[-1], vm_id, guest), card)
    to = await other.accept(there, Awaited(migration_id=an_id(), host="127.0.0.1"))
    with pytest.raises(StateConflict, match="let go"):  # the two ends would not be the same machine
        await driver.send(vm_id, an_id(), to, Goals(), lambda _: None)
    done = await driver.adjust(with_nics(plain))
    assert (done.pending, len(done.now.nics)) == ((), 1)
    assert (await driver.adjust(with_nics(plain, card))).pending == ()  # its plug is free again
    assert driver.report(vm_id) is not None
