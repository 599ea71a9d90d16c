"""The demo: boot a VM and live-migrate it while a client talks to it. `python -m novacron.lab.demo [--once | --clean]`.

With --once it ends by itself and its last line is one JSON object:

    boot_s                create request until the guest itself answers on the network
    provision_ms          create request until its QEMU runs
    migration_total_ms    migration request until completed, by the control plane
    bytes_transferred     as QEMU counts
    downtime_qemu_ms, downtime_guest_ms, downtime_client_ms    defined in novacron.lab.measure
    accelerator           kvm or tcg
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from novacron.client import devices, images, migrations, vms
from novacron.client.goals import vm_fits
from novacron.errors import NovaCronError
from novacron.lab import span
from novacron.lab.conversation import Talker
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.lab.guest.line import PORT, Status
from novacron.lab.lab import Lab, clean, open_lab, usual_path
from novacron.lab.measure import Window
from novacron.lab.screen import Screen
from novacron.model.image import FileRole

VM = "demo"
IMAGE = "lab-guest"
MEMORY_MIB = 512
MIGRATION_S = 300.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of --once."""

    boot_s: float
    provision_ms: float
    migration_total_ms: float | None
    bytes_transferred: int | None
    downtime_qemu_ms: float | None
    downtime_guest_ms: float
    downtime_client_ms: float
    accelerator: str | None


class Booted(msgspec.Struct, frozen=True, kw_only=True):
    """A VM whose guest answered."""

    vm: vms.Vm
    provision_ms: float
    boot_s: float


async def show(screen: Screen, path: Path, *, once: bool) -> Figures:
    """The whole show; with `once` it ends by itself, else at Ctrl-C.

    :raise NovaCronError: something did not work; nothing is left behind.
    """
    privileged = os.geteuid() == 0
    if not privileged:
        screen.say(
            "without root: guests are on user-mode networks, and the client has to reconnect after the migration"
        )
    files = await asyncio.to_thread(build, None, screen.say)
    screen.say(f"guest: {files.kernel.parent}")
    count = span.NODES if privileged else 2
    async with open_lab(path, nodes=count, bridged=privileged, say=screen.say) as lab, _talker(lab) as talker:
        await upload(lab, files, screen)
        way = await span.lay(lab) if privileged else None
        if way and way.nic.net:
            screen.say(f"network {way.nic.net} spans the nodes; the client enters it by {lab.nodes[-1]}")
        booted = await boot(lab, talker, screen, way=way)
        migration, window = await migrate(lab, talker, booted.vm, screen)
        figures = figures_of(booted, migration, window)
        screen.table(_rows(figures, window))
        _tell(screen, lab)
        if not once:
            screen.say("everything stays up until Ctrl-C")
            await asyncio.Event().wait()
    return figures


@contextlib.asynccontextmanager
async def _talker(lab: Lab) -> AsyncIterator[Talker]:
    talker = await Talker.start(lab.fabric.fabric if lab.fabric else None)
    try:
        yield talker
    finally:
        await talker.close()


async def upload(lab: Lab, files: GuestFiles, screen: Screen) -> None:
    """Make the image through the API."""
    await lab.client.do(images.create(images.ImageCreate(name=IMAGE, cmdline=files.cmdline)))
    await lab.client.upload(IMAGE, FileRole.KERNEL, files.kernel)
    await lab.client.upload(IMAGE, FileRole.INITRD, files.initrd)
    image = await lab.client.do(images.seal(IMAGE))
    size = sum(file.size_bytes for file in image.files)
    screen.say(f"image {image.name} is {image.state}: {size / 1e6:.1f} MB")


async def boot(
    lab: Lab, talker: Talker, screen: Screen, kernel_cmdline: str = "", way: span.Way | None = None
) -> Booted:
    """Create the VM, with these words more for its kernel, and wait until its guest answers on the network.

    way: the network it is on; None: the lab's bridge, or without root a user-mode network.
    """
    if way is None and lab.fabric:
        way = span.bridged()
    screen.say(f"creating VM {VM} with {MEMORY_MIB} MiB")
    asked_ns = time.monotonic_ns()
    created = await lab.client.do(vms.create(wanted_vm(kernel_cmdline, way, lab.nodes[0])))
    if way:
        talker.move(way.address, PORT)
    vm = await lab.client.wait_vm(created.id, "running")
    provision_ms = (time.monotonic_ns() - asked_ns) / 1e6
    screen.say(f"its QEMU runs on {vm.node} after {provision_ms:.0f} ms ({vm.accelerator}); the guest boots")
    if not way:
        talker.move(*_endpoint(vm))
    boot_s = (await talker.answered() - asked_ns) / 1e9
    screen.say(f"the guest answers on the network after {boot_s:.2f} s")
    return Booted(vm=vm, provision_ms=provision_ms, boot_s=boot_s)


def wanted_vm(kernel_cmdline: str, way: span.Way | None, node: str) -> vms.VmCreate:
    """On that network, or on a user-mode network that forwards to the guest's service."""
    cmdline = f"novacron.name={VM} {kernel_cmdline}".strip()
    if way:
        nic = way.nic
        cmdline += f" {way.words}"
    else:
        nic = devices.NicIn(network="user", forwards=[devices.ForwardIn(guest_port=PORT)])
    return vms.VmCreate(name=VM, image=IMAGE, memory_mib=MEMORY_MIB, node=node, nics=[nic], kernel_cmdline=cmdline)


def _endpoint(vm: vms.Vm) -> tuple[str, int]:
    for endpoint in vm.endpoints:
        if endpoint.guest_port == PORT:
            return endpoint.host, endpoint.host_port
    raise LabFailed.because(f"{vm.name} runs on {vm.node}, but its port {PORT} is forwarded nowhere")


async def migrate(lab: Lab, talker: Talker, vm: vms.Vm, screen: Screen) -> tuple[migrations.Migration, Window]:
    """Move it while the client talks, and verify that it is the same guest, elsewhere."""
    before = await talker.status()
    target = next(node for node in lab.nodes if node != vm.node)
    screen.say(f"live-migrating {VM} from {vm.node} to {target}; the client keeps talking")
    await talker.begin()
    asked = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id, target_node=target)))
    follower = None if lab.fabric else asyncio.create_task(_follow(lab, talker, vm))
    try:
        migration = await lab.client.wait_migration(asked.id, deadline_s=MIGRATION_S, on_update=screen.progress)
        if migration.state != "completed":
            why = migration.problem.message if migration.problem else "no reason is recorded"
            raise LabFailed.because(f"the migration ended {migration.state}: {why}")
        if follower:
            await follower
    finally:
        if follower:
            follower.cancel()
    window = await talker.end()
    moved = await lab.client.do(vms.get(vm.id))
    check(before, window.status, moved, target)
    kept = "kept its connection" if not window.reconnects else f"reconnected {window.reconnects} time(s)"
    screen.say(
        f"the guest answers from {target}: same boot {window.status.boot_id[:8]}, up {window.status.uptime_ms} ms "
        f"(before: {before.uptime_ms} ms); the client {kept}, {window.answers} answers"
    )
    return migration, window


async def _follow(lab: Lab, talker: Talker, vm: vms.Vm) -> None:
    """On a user-mode network the guest is found elsewhere afterwards: go there as soon as it is known."""
    old = _endpoint(vm)
    moved = await lab.client.wait_vm(
        vm.id,
        vm_fits(lambda now: now.node != vm.node and bool(now.endpoints) and _endpoint(now) != old, "reachable again"),
        deadline_s=MIGRATION_S,
    )
    talker.move(*_endpoint(moved))
    await talker.answered()


def check(before: Status, after: Status, vm: vms.Vm, target: str) -> None:
    """:raise LabFailed: it is not the same guest, alive on the target."""
    if vm.node != target:
        raise LabFailed.because(f"{vm.name} is on {vm.node}, not on {target}")
    if before.boot_id != after.boot_id or after.uptime_ms <= before.uptime_ms:
        raise LabFailed.because("the guest that answers is not the one that was moved")
    if after.pages_bad:
        raise LabFailed.because(f"{after.pages_bad} pages of the guest's memory are damaged")


def figures_of(booted: Booted, migration: migrations.Migration, window: Window) -> Figures:
    return Figures(
        boot_s=round(booted.boot_s, 3),
        provision_ms=round(booted.provision_ms, 1),
        migration_total_ms=migration.figures.total_ms,
        bytes_transferred=migration.figures.bytes_transferred,
        downtime_qemu_ms=migration.figures.downtime_qemu_ms,
        downtime_guest_ms=round(window.guest_downtime_ms, 2),
        downtime_client_ms=round(window.client_gap_ms, 2),
        accelerator=booted.vm.accelerator,
    )


def _rows(figures: Figures, window: Window) -> list[tuple[str, str]]:
    def in_ms(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.1f} ms"

    sent = figures.bytes_transferred
    return [
        ("QEMU running after", in_ms(figures.provision_ms)),
        ("guest answers after (boot)", f"{figures.boot_s:.2f} s"),
        ("migration, request to completed", in_ms(figures.migration_total_ms)),
        ("bytes transferred", "not measured" if sent is None else f"{sent / 1e6:.1f} MB"),
        ("downtime as QEMU saw it", in_ms(figures.downtime_qemu_ms)),
        ("downtime as the guest saw it", in_ms(figures.downtime_guest_ms)),
        ("downtime as the client saw it", in_ms(figures.downtime_client_ms)),
        ("client", f"{window.answers} answers, {window.reconnects} reconnects"),
    ]


def _tell(screen: Screen, lab: Lab) -> None:
    command = Path(sys.executable).with_name("novacron")
    screen.lines(
        f"API        {lab.server}  (documentation: {lab.server}/api/docs)",
        f"token      {lab.token_file.read_text().strip()}  (kept in {lab.token_file})",
        "try",
        f"  export NOVACRON_SERVER={lab.server} NOVACRON_TOKEN_FILE={lab.token_file}",
        f"  {command} vm list",
        f"  {command} vm migrate {VM} --wait",
        f"  {command} events --follow",
    )


async def _until_signal(screen: Screen, path: Path, *, once: bool) -> Figures | None:
    """The show; SIGINT, SIGTERM and SIGHUP end it in good order. None: it was ended so."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(show(screen, path, once=once))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def main() -> None:
    """0: shown, or ended by Ctrl-C. 1: something failed. 130: interrupted before --once was done."""
    parser = argparse.ArgumentParser(prog="python -m novacron.lab.demo", description=(__doc__ or "").splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--once", action="store_true", help="end by itself; the last line is JSON")
    choice.add_argument(
        "--clean", action="store_true", help="end and remove what a demo or a bench that was cut off left"
    )
    parser.add_argument("--dir", type=Path, help=f"the lab's directory (default: {usual_path()})")
    given = parser.parse_args()
    screen = Screen(sys.stdout)
    try:
        if given.clean:
            places = [given.dir] if given.dir else [usual_path(), usual_path("bench")]
            screen.say(f"ended {sum(map(clean, places))} processes of labs that were cut off")
            return
        figures = asyncio.run(_until_signal(screen, given.dir or usual_path(), once=given.once))
    except NovaCronError as failure:
        screen.failure(failure)
        sys.exit(1)
    if given.once:
        if figures is None:
            sys.exit(130)
        print(msgspec.json.encode(figures).decode(), flush=True)


if __name__ == "__main__":
    main()
