"""Real Debians read CD-ROMs: that for clouds on SCSI, which is all it knows, that with the usual kernel on SATA, too.

The usual kernel also knows the VM generation id.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pycdlib
import pytest

from novacron.cli import debian
from novacron.client import devices, images, migrations, vms
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab
from novacron.model.image import FileRole
from tests.system.debian_guest import BOOT_S, CLOUD, GENERIC, GIB, Guest, debian_lab, needs_debian

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow, pytest.mark.root, *needs_debian]

INSIDE = "mount -o ro /dev/sr0 /mnt 2>/dev/null && cat /mnt/* && umount /mnt || echo nothing"
EJECTED = "/lib/udev/cdrom_id --eject-media /dev/sr0"
RESEEDED = "dmesg | grep -c 'random: crng reseeded due to virtual machine fork' || true"


@contextlib.asynccontextmanager
async def reader(built: debian.Wish, drive: devices.MediaIn) -> AsyncIterator[Guest]:
    """A guest with an empty drive, and the images `first` and `second` to put into it."""
    async with debian_lab(built) as lab:
        for name in ("first", "second"):
            await an_iso(lab, name)
        wish = vms.VmCreate(
            name="reader",
            image="debian",
            memory_mib=768,
            root_disk_bytes=3 * GIB,
            nics=[],
            media=[drive],
            guest_agent=True,
            shared_memory=True,
            cloud_init=vms.CloudInitIn(user_data="#cloud-config\n"),
        )
        made = await lab.client.do(vms.create(wish))
        inside = Guest(lab, await lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=BOOT_S))
        await inside.booted()
        yield inside


async def an_iso(lab: Lab, name: str) -> None:
    """An image with a disc that holds one file with its name."""
    disc, content = pycdlib.PyCdlib(), name.encode()
    disc.new(vol_ident=name.upper())
    disc.add_fp(io.BytesIO(content), len(content), "/NAME.TXT;1")
    path = Path(lab.path / f"{name}.iso")
    disc.write(str(path))
    disc.close()
    await lab.client.do(images.create(images.ImageCreate(name=name)))
    await lab.client.upload(name, FileRole.CDROM, path)
    await lab.client.do(images.seal(name))


async def loaded(guest: Guest, image: str | None) -> None:
    client = guest.lab.client
    await client.do(vms.load_media(guest.vm.id, guest.vm.media[0].id, image))
    vm = await client.wait_vm(guest.vm.id, vm_settles("running"), deadline_s=60)
    assert (vm.pending, vm.problem) == ([], None)


async def discs_change(guest: Guest) -> None:
    for image, seen in (("first", "first"), ("second", "second"), (None, "nothing"), ("first", "first")):
        await loaded(guest, image)
        await guest.says(INSIDE, seen)


async def test_debians_cloud_kernel_reads_the_disc_that_is_in_and_does_so_where_it_moves() -> None:
    async with reader(CLOUD, devices.MediaIn()) as guest:
        assert guest.vm.media[0].bus == "scsi"
        assert await guest.does(INSIDE) == "nothing"
        await discs_change(guest)
        await guest.does(EJECTED)  # from inside: its tray is open, until it looks for a disc again
        await loaded(guest, "second")
        await guest.says(INSIDE, "second")

        client = guest.lab.client
        moved = await client.do(migrations.create(migrations.MigrationCreate(vm=guest.vm.id)))
        ended = await client.wait_migration(moved.id)
        assert ended.state == "completed", ended.problem
        assert await guest.does(INSIDE) == "second"
        await discs_change(guest)


async def test_the_usual_kernel_reads_it_on_sata_and_a_copys_kernel_knows_that_it_is_one() -> None:
    async with reader(GENERIC, devices.MediaIn(bus="sata")) as guest:
        assert guest.vm.media[0].bus == "sata"
        assert await guest.does(INSIDE) == "nothing"
        await discs_change(guest)

        client = guest.lab.client
        assert await guest.does(RESEEDED) == "0"
        await client.do(vms.park(guest.vm.id))
        await client.wait_vm(guest.vm.id, vm_settles("parked"), deadline_s=60)
        (asked,) = (await client.do(vms.copy(guest.vm.id, vms.CopiesCreate(name="copy")))).items
        copy = Guest(guest.lab, await client.wait_vm(asked.id, vm_settles("running")))
        assert await copy.does(RESEEDED) == "1"
        assert await copy.does(INSIDE) == "first"
