"""Does what `difference` found: plugs, unplugs, grows and limits over QMP, and looks again at what came of it."""

from __future__ import annotations

from novacron.agent.drivers.base import Adjustment, Launch
from novacron.agent.drivers.qemu import blocks, devices
from novacron.agent.drivers.qemu.command import dimm, memory
from novacron.agent.drivers.qemu.difference import (
    RESTART,
    Action,
    DropNetdev,
    DropNode,
    Limit,
    Load,
    PlugCpu,
    PlugDisk,
    PlugMemory,
    PlugNic,
    Resize,
    Runs,
    Unplug,
    UnplugCpu,
    UnplugMemory,
    difference,
    outcome,
)
from novacron.agent.drivers.qemu.look import look
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.power import demand
from novacron.errors import DeadlineExceeded, MonitorFailed, Reason
from novacron.model.machine import Qos

GUEST_DEADLINE_S = 8.0
LOOK_AGAIN_S = 0.5
RESIZE_DEADLINE_S = 30.0
CLOSE_DEADLINE_S = 5.0
CLOSE_PAUSE_S = 0.01
UNPLUGGING = "already in the process of unplug"


async def adjust(machine: Machine, wished: Launch) -> Adjustment:
    """Make the machine as wished. What QEMU or the guest refuses is a reason in the answer; the rest is done.

    :raise StateConflict: it has ended or is on its way elsewhere. :raise Unsupported: the wish cannot be built.
    :raise MonitorFailed, DeadlineExceeded: the monitor was lost; asked again, it goes on from what there is.
    """
    demand(machine, "adjust")
    machine.adjusting = True
    try:
        await blocks.hold(machine)
        met = await _work(machine, wished)
    finally:
        machine.adjusting = False
    machine.tell()
    return Adjustment(report=machine.report(), now=machine.record.spec or wished.spec, pending=met)


async def _work(machine: Machine, wished: Launch) -> tuple[Reason, ...]:
    """Why some of it waits. What runs then is in the record."""
    before = machine.record.spec or wished.spec
    runs = await look(machine, before)
    actions, reasons = difference(wished, runs)
    met = list(reasons)
    for action in actions:
        refusal = await _attempt(machine, action, wished, runs)
        met += [refusal] if refusal else []
    now = outcome(wished, await look(machine, before))
    machine.record.spec = now
    machine.record.endpoints = devices.endpoints(wished, now)
    machine.save()
    return tuple(met)


async def limit(machine: Machine, what: Launch) -> None:
    """Set the limits of its disks, as a process that has just been made has none. :raise MonitorFailed"""
    if not any(disk.qos != Qos() for disk in what.spec.disks):
        return
    runs = await look(machine, what.spec)
    for action in difference(what, runs)[0]:
        if isinstance(action, Limit):
            await _limit(machine, action)


async def _attempt(machine: Machine, action: Action, wished: Launch, runs: Runs) -> Reason | None:
    """Why it was not done; None: it was."""
    try:
        return await _do(machine, action, wished, runs)
    except MonitorFailed as refused:
        if machine.monitor is None or not machine.monitor.connected:
            raise
        words = refused.reasons[0].message if refused.reasons else refused.message
        return Reason("qemu.refused", f"QEMU refuses: {words}", _subject(action), RESTART)


async def _do(machine: Machine, action: Action, wished: Launch, runs: Runs) -> Reason | None:
    match action:
        case Unplug(device, part):
            return await _unplug(machine, device, part, runs)
        case Load():
            return await _load(machine, action, runs)
        case UnplugCpu(path):
            return await _leave(machine, path, "vcpus")
        case UnplugMemory(index):
            return await _unplug_memory(machine, index)
        case PlugDisk():
            await _plug_disk(machine, action, wished, runs)
        case PlugNic():
            await _plug_nic(machine, action, wished)
        case PlugMemory(index, size_mib):
            await _plug_memory(machine, index, size_mib)
        case Limit():
            await _limit(machine, action)
        case _:
            command, told = _plain(action)
            await machine.door().execute(command, told, deadline_s=RESIZE_DEADLINE_S)
    return None


def _plain(action: DropNode | DropNetdev | Resize | PlugCpu) -> tuple[str, dict[str, object]]:
    """Those that are one command."""
    match action:
        case DropNode(node):
            return "blockdev-del", {"node-name": node}
        case DropNetdev(name):
            return "netdev_del", {"id": name}
        case Resize(_, node, size_bytes):
            return "block_resize", {"node-name": node, "size": size_bytes}
        case PlugCpu(cpu, number):
            return "device_add", {"driver": cpu.type, "id": f"cpu{number}", **cpu.props}


# -- disks -----------------------------------------------------------------------------------------------------


async def _plug_disk(machine: Machine, action: PlugDisk, wished: Launch, runs: Runs) -> None:
    """Nothing is left open of a disk that could not be plugged in."""
    execute, disk = machine.door().execute, action.disk
    for secret in devices.secrets(disk):
        if secret["id"] not in runs.objects:
            await execute("object-add", secret)
    node = devices.node_of(disk.volume_id)
    if node not in runs.nodes:
        await execute("blockdev-add", devices.storage(disk))
    try:
        await execute("device_add", devices.disk_device(disk, action.slot, wished.spec))
    except MonitorFailed:
        await execute("blockdev-del", {"node-name": node})
        raise
    spec = next((one for one in wished.spec.disks if one.volume_id == disk.volume_id), None)
    if spec is not None and spec.qos != Qos():
        await _limit(machine, Limit(disk.volume_id, devices.disk_id(disk.volume_id), spec.qos))


async def _limit(machine: Machine, action: Limit) -> None:
    """The most it may do in all, reading and writing together."""
    most = {
        "bps": action.qos.bytes_per_s,
        "bps_rd": 0,
        "bps_wr": 0,
        "iops": action.qos.iops,
        "iops_rd": 0,
        "iops_wr": 0,
    }
    await machine.door().execute("block_set_io_throttle", {"id": action.qdev, **most})


async def _close(machine: Machine, node: str) -> None:
    """Close a node. A device that is gone lets go of it a moment later, when QEMU has looked to all its threads."""
    until_s = machine.clock.monotonic_s() + CLOSE_DEADLINE_S
    while True:
        try:
            await machine.door().execute("blockdev-del", {"node-name": node})
        except MonitorFailed as refused:
            if "in use" not in refused.message or machine.clock.monotonic_s() > until_s:
                raise
            await machine.clock.sleep(CLOSE_PAUSE_S)
        else:
            return


async def _unplug(machine: Machine, device: str, part: str, runs: Runs) -> Reason | None:
    refusal = await _leave(machine, f"/machine/peripheral/{device}", part)
    if refusal is not None:
        return refusal
    if device.startswith(devices.DISK):
        await _close(machine, runs.disks[part].node if part in runs.disks else devices.node_of(part))
    else:
        await machine.door().execute("netdev_del", {"id": devices.netdev_id(part)})
    return None


# -- cards, drives, memory ---------------------------------------------------------------------------------------


async def _plug_nic(machine: Machine, action: PlugNic, wished: Launch) -> None:
    execute, name = machine.door().execute, devices.netdev_id(action.nic.nic_id)
    try:
        await execute("netdev_del", {"id": name})  # an agent died before its card was plugged in
    except MonitorFailed:
        machine.door()  # there was none
    await execute("netdev_add", devices.netdev(action.nic))
    try:
        await execute("device_add", devices.card(action.nic, action.slot, wished.spec))
    except MonitorFailed:
        await execute("netdev_del", {"id": name})
        raise


async def _load(machine: Machine, action: Load, runs: Runs) -> Reason | None:
    """Open, take out, put in, close. A guest that has locked the tray is asked for it, and may refuse."""
    execute, drive, node = (
        machine.door().execute,
        devices.drive_id(action.media_id),
        devices.medium_node(action.media_id),
    )
    asked_at_s = machine.clock.monotonic_s()

    def opened() -> bool:
        return machine.seen_at_s.get("DEVICE_TRAY_MOVED", 0.0) >= asked_at_s

    try:
        await execute("blockdev-open-tray", {"id": drive})
        await execute("blockdev-remove-medium", {"id": drive})
    except MonitorFailed as locked:
        if "locked" not in locked.message and "not open" not in locked.message:
            raise
        try:
            moved = "DEVICE_TRAY_MOVED"
            await machine.until(
                lambda: machine.seen_at_s.get(moved, 0.0) >= asked_at_s, GUEST_DEADLINE_S, "open its drive"
            )
        except DeadlineExceeded:
            return Reason("drive.locked", "its guest holds the drive's tray", action.media_id, "eject it in the guest")
        await execute("blockdev-remove-medium", {"id": drive})
    if node in runs.nodes:
        await _close(machine, node)
    if action.path is not None:
        await execute("blockdev-add", devices.medium(action.path, action.media_id))
        await execute("blockdev-insert-medium", {"id": drive, "node-name": node})
    await execute("blockdev-close-tray", {"id": drive})
    return None


async def _plug_memory(machine: Machine, index: int, size_mib: int) -> None:
    execute = machine.door().execute
    await execute("object-add", memory(index, size_mib))
    try:
        await execute("device_add", dimm(index))
    except MonitorFailed:
        await execute("object-del", {"id": f"memory{index}"})
        raise


async def _unplug_memory(machine: Machine, index: int) -> Reason | None:
    refusal = await _leave(machine, f"/machine/peripheral/dimm{index}", "memory_mib")
    if refusal is None:
        await machine.door().execute("object-del", {"id": f"memory{index}"})
    return refusal


async def _leave(machine: Machine, path: str, part: str) -> Reason | None:
    """Have a device go, which needs the guest's consent; None: it is gone."""
    asked_at_s = machine.clock.monotonic_s()
    until_s = asked_at_s + GUEST_DEADLINE_S
    try:
        await machine.door().execute("device_del", {"id": path})
    except MonitorFailed as refused:
        if UNPLUGGING not in refused.message:
            raise

    def news() -> bool:
        heard = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
        return machine.ended or any(machine.seen_at_s.get(name, 0.0) >= asked_at_s for name in heard)

    while await _is_there(machine, path):
        left_s = until_s - machine.clock.monotonic_s()
        if machine.seen_at_s.get("DEVICE_UNPLUG_GUEST_ERROR", 0.0) >= asked_at_s or left_s <= 0:
            return Reason("guest.keeps", "its guest does not let go of it; it leaves when it does", part, RESTART)
        try:
            await machine.until(news, min(left_s, LOOK_AGAIN_S), "let go")
        except DeadlineExceeded:
            continue
    return None


async def _is_there(machine: Machine, path: str) -> bool:
    try:
        await machine.door().execute("qom-list", {"path": path})
    except MonitorFailed:
        machine.door()
        return False
    return True


def _subject(action: Action) -> str:
    match action:
        case Unplug(_, part):
            return part
        case PlugDisk(disk):
            return disk.volume_id
        case PlugNic(nic):
            return nic.nic_id
        case Resize(volume_id) | Limit(volume_id):
            return volume_id
        case Load(media_id):
            return media_id
        case PlugCpu() | UnplugCpu():
            return "vcpus"
        case PlugMemory() | UnplugMemory():
            return "memory_mib"
        case DropNode(name) | DropNetdev(name):
            return name
