"""What only a real guest can show: a Debian made of a template, on a network of ours, its hardware and its snapshots.

One boot for all of it (a minute under emulation): the tests follow each other in one machine and leave it as it was.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import devices, images, snapshots, templates, vms, volumes
from novacron.client.goals import vm_settles
from tests.system.debian_guest import BOOT_S, GIB, MTU, RESOLVER, Guest, debian_lab, needs_debian

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow, pytest.mark.root, *needs_debian]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3Jt0Jp0f6nQe0ZkqNf1Jq0h3pQk3C9qkHq0mT4XAAA someone@somewhere"
USER_DATA = """#cloud-config
hostname: {{vm.name}}
fqdn: {{vm.name}}.{{param.domain}}
ssh_authorized_keys: ["{{param.key}}"]
write_files:
- {path: /etc/marker, content: "number {{vm.index}} of {{param.domain}}"}
runcmd:
- echo "MARK $(hostname)" > /dev/ttyS0
"""
TEMPLATE = {
    "image": "debian",
    "memory_mib": "{{param.memory_mib}}",
    "root_disk_bytes": 3 * GIB,
    "max_vcpus": 2,
    "guest_agent": True,
    "nics": [{"network": "overlay", "net": "web"}],
    "cloud_init": {"user_data": USER_DATA},
}
PARAMETERS = [
    templates.ParameterIn(name="memory_mib", type="integer", default=512),
    templates.ParameterIn(name="domain"),
    templates.ParameterIn(name="key"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def guest(anyio_backend: str) -> AsyncIterator[Guest]:
    async with debian_lab() as lab:
        wish = templates.TemplateCreate(name="shop", vm=TEMPLATE, parameters=PARAMETERS)
        await lab.client.do(templates.create(wish))
        values = {"domain": "example.net", "key": KEY}
        made = await lab.client.do(templates.instantiate("shop", templates.Instantiate(name="till", parameters=values)))
        inside = Guest(lab, await lab.client.wait_vm(made.items[0].id, vm_settles("running"), deadline_s=BOOT_S))
        await inside.booted()
        yield inside


async def settled(guest: Guest) -> vms.Vm:
    vm = await guest.lab.client.wait_vm(guest.vm.id, vm_settles("running"), deadline_s=60)
    assert vm.problem is None
    return vm


async def test_cloud_init_did_what_the_template_says(guest: Guest) -> None:
    assert await guest.does("cloud-init status") == "status: done"
    assert "MARK till" in (await guest.console()).splitlines()
    assert await guest.does("hostname --fqdn") == "till.example.net"
    assert await guest.does("cat /etc/marker") == "number 1 of example.net"
    assert KEY in await guest.does("cat /home/debian/.ssh/authorized_keys")
    assert await guest.does("cat /etc/machine-id") == guest.vm.id.replace("-", "")
    assert int(await guest.does("df -B1 --output=size / | tail -1")) > 2.7 * GIB  # grown to its disk
    assert int(await guest.does("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) > 400 << 10


async def test_the_network_gives_it_the_address_that_was_promised(guest: Guest) -> None:
    (card,) = guest.vm.nics
    name = await guest.does(f"basename $(dirname $(grep -l {card.mac} /sys/class/net/*/address))")
    assert await guest.does(f"ip -4 -br address show dev {name} | awk '{{print $3}}'") == f"{card.addresses[0]}/24"
    assert await guest.does("ip route show default") == f"default via 10.20.0.1 dev {name}"
    assert await guest.does("cat /etc/resolv.conf") == f"nameserver {RESOLVER}"
    assert await guest.does(f"cat /sys/class/net/{name}/mtu") == str(MTU)
    lease = await guest.does(f"cat /var/lib/dhcp/dhclient.{name}.leases")
    assert f"fixed-address {card.addresses[0]};" in lease
    assert "option dhcp-server-identifier 10.20.0.1;" in lease
    assert f"option interface-mtu {MTU};" in lease


async def test_a_disk_comes_grows_and_goes_as_it_runs(guest: Guest) -> None:
    do, vm_id = guest.lab.client.do, guest.vm.id
    before = await guest.does("lsblk -ndo NAME")
    await do(volumes.create(volumes.VolumeCreate(name="extra", size_bytes=GIB)))
    await do(volumes.attach(vm_id, devices.DiskIn(volume="extra")))
    await settled(guest)
    await guest.says("lsblk -bdno SIZE /dev/sda 2>/dev/null || true", str(GIB))
    await guest.does("mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt && echo here > /mnt/it && sync && cat /mnt/it")
    await do(volumes.update("extra", volumes.VolumeUpdate(size_bytes=2 * GIB)))
    await guest.says("lsblk -bdno SIZE /dev/sda", str(2 * GIB))
    await guest.does("resize2fs -f /dev/sda && umount /mnt")
    await do(volumes.detach(vm_id, "extra"))
    await settled(guest)
    await guest.says("lsblk -ndo NAME", before)
    await do(volumes.delete("extra"))


async def test_the_disk_it_was_made_with_grows(guest: Guest) -> None:
    root = guest.vm.disks[0].volume_id
    await guest.lab.client.do(volumes.update(root, volumes.VolumeUpdate(size_bytes=4 * GIB)))
    await guest.says("lsblk -bdno SIZE /dev/vda", str(4 * GIB))
    await guest.does("resize2fs /dev/vda")
    assert int(await guest.does("df -B1 --output=size / | tail -1")) > 3.7 * GIB


async def test_a_card_comes_asks_for_its_address_and_goes(guest: Guest) -> None:
    do, vm_id = guest.lab.client.do, guest.vm.id
    before = await guest.does("ls /sys/class/net")
    await do(vms.attach_nic(vm_id, devices.NicIn(network="overlay", net="web", addresses=["10.20.0.77"])))
    vm = await settled(guest)
    late = next(nic for nic in vm.nics if nic.mac != guest.vm.nics[0].mac)
    await guest.says(f"ip -br link | grep {late.mac} | wc -l", "1")
    await guest.says("ip -4 -br address | grep -ow 10.20.0.77/24 || true", "10.20.0.77/24")
    await do(vms.detach_nic(vm_id, late.id))
    vm = await settled(guest)
    assert vm.pending == []
    await guest.says("ls /sys/class/net", before)


async def test_a_virtual_cpu_waits_for_the_next_start_under_emulation(guest: Guest) -> None:
    await guest.lab.client.do(vms.update(guest.vm.id, vms.VmUpdate(vcpus=2)))
    vm = await settled(guest)
    if vm.accelerator == "tcg":
        assert [waiting.code for waiting in vm.pending] == ["tcg.keeps"]
        assert await guest.does("nproc") == "1"
    else:  # Debian's udev leaves it switched off
        await guest.says("ls -d /sys/devices/system/cpu/cpu1 || true", "/sys/devices/system/cpu/cpu1")
        await guest.says("grep -qx 1 /sys/devices/system/cpu/cpu1/online || echo 1 > $_; nproc", "2")
    await guest.lab.client.do(vms.update(guest.vm.id, vms.VmUpdate(vcpus=1)))
    await settled(guest)


async def test_its_agent_freezes_it_for_a_snapshot_and_lets_it_go_on(guest: Guest, tmp_path: Path) -> None:
    await guest.does("echo written and not synced > /root/before")
    wish = snapshots.SnapshotCreate(name="quiet", quiesce=True)
    asked = await guest.lab.client.do(snapshots.create(guest.vm.id, wish))
    taken = await guest.lab.client.wait_snapshot(asked.id, deadline_s=60)
    assert (taken.state, taken.consistency) == ("ready", "quiesced")
    await guest.does("echo it goes on > /root/after && sync && test -s /root/after")

    disk = await exported(guest, taken, tmp_path)
    checked = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "journal" not in checked.stdout + checked.stderr  # nothing to be recovered: it was written out
    assert content(disk, "/root/before") == "written and not synced\n"
    assert content(disk, "/root/after") == ""


async def exported(guest: Guest, taken: snapshots.Snapshot, directory: Path) -> Path:
    """The disk it was made with as it was then, raw."""
    lab, root = guest.lab, guest.vm.disks[0].volume_id
    made = await lab.client.do(snapshots.export(taken.id, snapshots.ExportRequest(image="then", volume_id=root)))
    await lab.client.wait_snapshot(taken.id, deadline_s=300)
    image = await lab.client.do(images.get(made.id))
    assert image.state == "ready"
    source, disk = lab.path / "pool" / "images" / image.files[0].digest, directory / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", source, disk], check=True)
    return disk


def content(disk: Path, path: str) -> str:
    command = ["/sbin/debugfs", "-R", f"cat {path}", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout
