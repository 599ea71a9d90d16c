"""Guests of the migration bench: on the lab's bridge, told what to do over the network, moved through the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from novacron.client import devices, migrations, vms
from novacron.lab.demo import IMAGE, upload
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.lab.guest.line import GuestLine
from novacron.lab.lab import Lab, open_lab, usual_path
from novacron.lab.network import BRIDGE, Fabric, guest_address
from novacron.lab.screen import Screen
from tests.system.postcopy_setting import postcopy_allowed

END_S = 600.0


@contextlib.asynccontextmanager
async def a_lab(screen: Screen) -> AsyncIterator[tuple[Lab, Fabric, GuestFiles]]:
    """Two nodes of their own on a bridge, able to do post-copy, and the guest's image."""
    files = await asyncio.to_thread(build, None, screen.say)
    with postcopy_allowed():
        async with open_lab(usual_path("bench"), bridged=True, say=screen.say) as lab:
            if lab.fabric is None:
                raise LabFailed.because("the bench needs the lab's bridge", "run it as root")
            await upload(lab, files, screen)
            yield lab, lab.fabric, files


def bare_address(number: int) -> str:
    """Of guest `number`, without the prefix."""
    return guest_address(number).partition("/")[0]


async def at(fabric: Fabric, number: int, line: str) -> str:
    """What guest `number` answers to a line from the fabric; waits for it to answer at all."""

    def asked() -> str:
        with GuestLine.wait(bare_address(number)) as talk:
            return talk.ask(line)

    return await asyncio.to_thread(fabric.fabric.run, asked)


class Guest:
    """A VM, its address, and the line to what runs in it."""

    def __init__(self, lab: Lab, fabric: Fabric, vm: vms.Vm, number: int) -> None:
        self._lab, self._fabric, self.vm, self.number = lab, fabric, vm, number
        self.address = bare_address(number)

    @classmethod
    async def boot(
        cls, lab: Lab, fabric: Fabric, number: int, memory_mib: int, disks: tuple[devices.DiskIn, ...] = ()
    ) -> Guest:
        """It runs on node-1 and answers."""
        wish = vms.VmCreate(
            name=f"bench-{number}", image=IMAGE, memory_mib=memory_mib, node=lab.nodes[0], disks=disks,
            nics=[devices.NicIn(network="bridge", bridge=BRIDGE)],
            kernel_cmdline=f"novacron.ip={guest_address(number)}",
        )  # fmt: skip
        made = await lab.client.do(vms.create(wish))
        guest = cls(lab, fabric, await lab.client.wait_vm(made.id, "running"), number)
        await guest.ask("clock")
        return guest

    async def ask(self, line: str) -> str:
        """What it answers."""
        return await at(self._fabric, self.number, line)

    async def rest(self) -> None:
        await self._lab.client.do(vms.pause(self.vm.id))
        await self._lab.client.wait_vm(self.vm.id, "paused")

    async def wake(self) -> None:
        await self._lab.client.do(vms.resume(self.vm.id))
        await self._lab.client.wait_vm(self.vm.id, "running")

    @property
    def other_node(self) -> str:
        """Where it is not."""
        return next(node for node in self._lab.nodes if node != self.vm.node)

    async def move(self, wish: migrations.MigrationCreate) -> migrations.Migration:
        """To its end. :raise LabFailed: it did not complete."""
        done = await self.try_to_move(wish)
        if done.state != "completed":
            raise LabFailed.because(f"the migration ended {done.state}: {done.problem}")
        return done

    async def try_to_move(self, wish: migrations.MigrationCreate) -> migrations.Migration:
        """To its end, well or not."""
        asked = await self._lab.client.do(migrations.create(wish))
        done = await self._lab.client.wait_migration(asked.id, deadline_s=END_S)
        self.vm = await self._lab.client.do(vms.get(self.vm.id))
        return done
