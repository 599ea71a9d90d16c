"""Copies of a parked Debian: each is somebody else before it has a card, in seconds where a boot takes a minute.

Figures are logged: `pytest --log-cli-level=WARNING`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import devices, vms
from novacron.client.goals import vm_settles
from tests.system.debian_guest import BOOT_S, GIB, MTU, RESOLVER, Guest, debian_lab, needs_debian
from tests.system.spine import living_copies

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow, pytest.mark.root, *needs_debian]

LOG = logging.getLogger(__name__)
COUNT = 2
KEYS = {"ssh_host_rsa_key.pub", "ssh_host_ecdsa_key.pub", "ssh_host_ed25519_key.pub"}
FINGERPRINTS = "cd /etc/ssh && for key in *.pub; do echo $key $(cut -d' ' -f2 $key); done"
SERVED = "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f3"
CARD = devices.NicIn(network="overlay", net="web")


@pytest.fixture
async def parent() -> AsyncIterator[Guest]:
    """A Debian without a card that may be parked, booted."""
    async with debian_lab() as lab:
        wish = vms.VmCreate(
            name="golden",
            image="debian",
            memory_mib=512,
            root_disk_bytes=3 * GIB,
            node="node-1",
            nics=[],
            guest_agent=True,
            shared_memory=True,
            cloud_init=vms.CloudInitIn(user_data="#cloud-config\nhostname: golden\n"),
        )
        begun = time.monotonic()
        made = await lab.client.do(vms.create(wish))
        inside = Guest(lab, await lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=BOOT_S))
        await inside.booted()
        LOG.warning("a boot: %.1f s, then %d MiB", time.monotonic() - begun, pss_mib(made.id))
        yield inside


def pss_mib(vm_id: str) -> int:
    """What a machine takes of the memory of its node, its share of what it shares."""
    (pid,) = living_copies(vm_id)
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) >> 10


async def copied(parent: Guest) -> list[Guest]:
    client = parent.lab.client
    await client.do(vms.park(parent.vm.id))
    await client.wait_vm(parent.vm.id, vm_settles("parked"), deadline_s=60)
    begun = time.monotonic()
    asked = await client.do(vms.copy(parent.vm.id, vms.CopiesCreate(name="worker", count=COUNT, nics=[CARD])))
    copies = [Guest(parent.lab, await client.wait_vm(vm.id, vm_settles("running"))) for vm in asked.items]
    LOG.warning("%d copies: %.1f s", COUNT, time.monotonic() - begun)
    return copies


async def test_copies_are_somebody_else_within_seconds(parent: Guest) -> None:
    await parent.does("echo warm > /dev/shm/cache; dd if=/dev/urandom of=/dev/shm/seen bs=32 count=1 status=none")
    theirs = await who(parent)
    copies = await copied(parent)
    LOG.warning("they take %s MiB", [pss_mib(copy.vm.id) for copy in copies])
    for copy in copies:
        assert await copy.does("cat /dev/shm/cache") == "warm"  # it did not boot
    selves = [await who(copy) for copy in copies]
    for copy, self in zip(copies, selves, strict=True):
        assert self["name"] == self["kept name"] == self["full name"] == copy.vm.name
        assert self["machine id"] == copy.vm.id.replace("-", "")
        assert abs(float(self["clock"]) - time.time()) < 60
        assert self["keys"]
    for what in ("name", "machine id", "randomness", "served"):
        assert len({self[what] for self in (theirs, *selves)}) == COUNT + 1, (what, theirs, selves)
    await no_key_is_shared(parent, theirs, copies)
    await asyncio.gather(*(its_card_is_up(copy) for copy in copies))
    assert len({copy.vm.nics[0].mac for copy in copies}) == COUNT
    await it_boots_as_itself(copies[0])


async def who(guest: Guest) -> dict[str, str]:
    """What makes it itself."""
    return {
        "randomness": await guest.does("head -c 16 /dev/urandom | od -An -tx1"),
        "name": await guest.does("hostname"),
        "kept name": await guest.does("cat /etc/hostname"),
        "full name": await guest.does("hostname --fqdn"),
        "machine id": await guest.does("cat /etc/machine-id"),
        "clock": await guest.does("date +%s.%N"),
        "keys": await guest.does(FINGERPRINTS),
        "served": await guest.does(SERVED),
    }


async def no_key_is_shared(parent: Guest, theirs: dict[str, str], copies: list[Guest]) -> None:
    """Once those made behind its back are there too."""
    seen = [theirs["keys"]]
    for copy in copies:
        await copy.says("cd /etc/ssh && ls ssh_host_*_key.pub | grep -cE 'rsa|ecdsa|ed25519'", str(len(KEYS)))
        seen.append(await copy.does(FINGERPRINTS))
    lines = [line for one in seen for line in one.splitlines()]
    assert len(set(lines)) == len(lines), lines
    assert all(line.split()[0] in KEYS for one in seen[1:] for line in one.splitlines()), lines


async def its_card_is_up(copy: Guest) -> None:
    (card,) = copy.vm.nics
    await copy.says(f"ip -4 -br address | grep -ow {card.addresses[0]}/24 || true", f"{card.addresses[0]}/24")
    await copy.says("cat /etc/resolv.conf", f"nameserver {RESOLVER}")
    await copy.says("ip route show default | cut -d' ' -f3", "10.20.0.1")
    await copy.does(f"grep -l {card.mac} /sys/class/net/*/address && grep -x {MTU} /sys/class/net/e*/mtu")


async def it_boots_as_itself(copy: Guest) -> None:
    """It keeps its name, its keys, its address; cloud-init does not begin anew."""
    before = await who(copy)
    client = copy.lab.client
    await client.do(vms.stop(copy.vm.id))
    await client.wait_vm(copy.vm.id, vm_settles("stopped"), deadline_s=120)
    await client.do(vms.start(copy.vm.id))
    copy.vm = await client.wait_vm(copy.vm.id, vm_settles("running"), deadline_s=BOOT_S)
    await copy.booted()
    await copy.does("test ! -e /dev/shm/cache")
    after = await who(copy)
    same = ("name", "kept name", "full name", "machine id", "keys", "served")
    assert {what: after[what] for what in same} == {what: before[what] for what in same}
    await its_card_is_up(copy)
