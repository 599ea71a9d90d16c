"""What has to be done to a machine that runs so that it is as wished, and what has to wait for its next start. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from novacron.agent.drivers.base import DiskFile, Launch, NicPlug
from novacron.agent.drivers.qemu import devices
from novacron.agent.drivers.qemu.command import MEMORY_SLOTS, can_grow
from novacron.errors import Reason
from novacron.model.machine import HOT_SLOT, Disk, MachineSpec, Media, Nic, Qos

RESTART = "novacron vm restart"
EMULATED = "tcg"
"""Under it nothing grows as it runs. A new vCPU finds no room for its translated code and QEMU aborts when the others
have taken all of it (up to 10.0; seen at the second vCPU of a guest with a kernel); and of memory in whole blocks a
migration may lose what a busy guest writes (before 9.0, see command._memory_kib).
"""
DIMM_MIB = 128
"""A guest takes memory in blocks of this size."""


# -- what runs -------------------------------------------------------------------------------------------------


class DiskRuns(msgspec.Struct, frozen=True, kw_only=True):
    """qdev: what QEMU calls its front end; node: the block node it works with."""

    qdev: str
    node: str
    size_bytes: int
    qos: Qos = Qos()


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """A place for a vCPU. path: of the one in it, empty: none is."""

    type: str
    props: dict[str, Any]
    path: str = ""


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as QEMU describes it: by device id. before: its spec as last noted, for what QEMU does not know."""

    before: MachineSpec
    accelerator: str = ""
    devices: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    disks: Mapping[str, DiskRuns] = {}
    drives: Mapping[str, str] = {}  # drive → the path of what is in it
    cpus: tuple[Cpu, ...] = ()
    dimms_mib: tuple[int, ...] = ()


# -- what is to be done ----------------------------------------------------------------------------------------


class Unplug(msgspec.Struct, frozen=True):
    """Take a device away; `part` is what a person calls it (a volume's id, a card's id)."""

    device: str
    part: str


class DropNode(msgspec.Struct, frozen=True):
    """Close what no device uses any more."""

    node: str


class DropNetdev(msgspec.Struct, frozen=True):
    """Close the plug of a card that its guest let go of late."""

    name: str


class PlugDisk(msgspec.Struct, frozen=True):
    disk: DiskFile
    slot: int


class PlugNic(msgspec.Struct, frozen=True):
    nic: NicPlug
    slot: int


class Resize(msgspec.Struct, frozen=True):
    volume_id: str
    node: str
    size_bytes: int


class Limit(msgspec.Struct, frozen=True):
    volume_id: str
    qdev: str
    qos: Qos


class Load(msgspec.Struct, frozen=True):
    """Change what is in a drive; path None: nothing."""

    media_id: str
    path: Path | None


class PlugCpu(msgspec.Struct, frozen=True):
    cpu: Cpu
    number: int


class UnplugCpu(msgspec.Struct, frozen=True):
    path: str


class PlugMemory(msgspec.Struct, frozen=True):
    index: int
    size_mib: int


class UnplugMemory(msgspec.Struct, frozen=True):
    index: int


Drop = DropNode | DropNetdev
Action = Drop | Unplug | PlugDisk | PlugNic | Resize | Limit | Load | PlugCpu | UnplugCpu | PlugMemory | UnplugMemory
Steps = Iterator[Action | Reason]


def difference(wished: Launch, runs: Runs) -> tuple[tuple[Action, ...], tuple[Reason, ...]]:
    """What to do, in this order (what leaves makes room for what comes), and why the rest has to wait.

    :raise Unsupported: the wish cannot be built at all.
    """
    steps = [
        *_leaving(wished, runs),
        *_disks(wished, runs),
        *_nics(wished, runs),
        *_drives(wished, runs),
        *_cpus(wished, runs),
        *_memory(wished, runs),
    ]
    actions = tuple(step for step in steps if not isinstance(step, Reason))
    return actions, tuple(step for step in steps if isinstance(step, Reason))


def outcome(wished: Launch, runs: Runs) -> MachineSpec:
    """The spec a machine runs with, as QEMU describes it now."""
    before, spec = runs.before, wished.spec
    disks = (_disk_as_runs(disk, runs) for disk in _present(spec.disks, before.disks, runs, "volume_id", devices.DISK))
    nics = (_card_as_runs(nic, runs) for nic in _present(spec.nics, before.nics, runs, "id", devices.NIC))
    paths = {one.id: one.path for one in wished.media}
    media = _present(spec.media, before.media, runs, "id", devices.DRIVE)
    return msgspec.structs.replace(
        before,
        generation=spec.generation,
        vcpus=sum(bool(cpu.path) for cpu in runs.cpus) or before.vcpus,
        memory_mib=devices.base_mib(before) + sum(runs.dimms_mib),
        dimms_mib=runs.dimms_mib,
        disks=tuple(disks),
        nics=tuple(nics),
        media=tuple(_drive_as_runs(one, paths.get(one.id), runs) for one in media),
        pools=spec.pools,
        networks=spec.networks,
    )


# -- disks and cards -------------------------------------------------------------------------------------------


def _leaving(wished: Launch, runs: Runs) -> Steps:
    kept = {devices.disk_id(disk.volume_id) for disk in wished.disks}
    kept |= {devices.nic_id(nic.nic_id) for nic in wished.nics}
    board = {devices.disk_id(disk.volume_id) for disk in runs.before.disks if 0 <= disk.slot < HOT_SLOT}
    board |= {devices.nic_id(nic.id) for nic in runs.before.nics if 0 <= nic.slot < HOT_SLOT}
    for device in sorted(runs.devices):
        if device in kept or not device.startswith((devices.DISK, devices.NIC)):
            continue
        part = device.removeprefix(devices.DISK).removeprefix(devices.NIC)
        if device in board:
            yield Reason("board.leaves_at_end", "it sits on the board, and leaves at the next start", part, RESTART)
        else:
            yield Unplug(device, part)
    for nic in runs.before.nics:
        if devices.nic_id(nic.id) not in kept | runs.devices:
            yield DropNetdev(devices.netdev_id(nic.id))
    used = {devices.node_of(name.removeprefix(devices.DISK)) for name in kept if name[:5] == "disk-"}
    used |= {disk.node for disk in runs.disks.values()}
    for node in sorted(node for node in runs.nodes if node.startswith(devices.VOLUME_NODES) and node not in used):
        yield DropNode(node)


def _disks(wished: Launch, runs: Runs) -> Steps:
    specs = {disk.volume_id: disk for disk in wished.spec.disks}
    before = {disk.volume_id: disk for disk in runs.before.disks}
    for disk, slot in zip(wished.disks, _slots(wished, runs, "disks").values(), strict=True):
        runs_as = runs.disks.get(disk.volume_id)
        spec = specs.get(disk.volume_id, Disk(volume_id=disk.volume_id, size_bytes=0))
        late = _late(runs, disk.volume_id, slot) if runs_as is None else None
        if late is not None:
            yield late
            continue
        if runs_as is None:
            yield PlugDisk(disk, slot)
        elif spec.size_bytes > runs_as.size_bytes:
            yield Resize(disk.volume_id, runs_as.node, spec.size_bytes)
        if runs_as is not None and spec.qos != runs_as.qos:
            yield Limit(disk.volume_id, runs_as.qdev, spec.qos)
        yield from _order(disk.volume_id, spec, before)


def _nics(wished: Launch, runs: Runs) -> Steps:
    before = {nic.id: nic for nic in runs.before.nics}
    specs = {nic.id: nic for nic in wished.spec.nics}
    for nic, slot in zip(wished.nics, _slots(wished, runs, "nics").values(), strict=True):
        runs_already = devices.nic_id(nic.nic_id) in runs.devices
        late = None if runs_already else _late(runs, nic.nic_id, slot)
        if late is not None:
            yield late
            continue
        if not runs_already:
            yield PlugNic(nic, slot)
        elif nic.nic_id in before and not _same_card(before[nic.nic_id], specs[nic.nic_id]):
            yield Reason("card.changes_at_start", "its card is another from the next start on", nic.nic_id, RESTART)
        if nic.nic_id in specs:
            yield from _order(nic.nic_id, specs[nic.nic_id], before)


def _order(part: str, wished: Disk | Nic, before: Mapping[str, Disk | Nic]) -> Steps:
    """A firmware looks at the starting order when the machine starts; what is plugged in later has no place in it."""
    if wished.boot_order != _boot_order(part, before):
        yield Reason("boot_order.waits", "its place in the starting order counts from the next start", part, RESTART)


def _boot_order(part: str, before: Mapping[str, Disk | Nic]) -> int:
    return before[part].boot_order if part in before else 0


def _slots(wished: Launch, runs: Runs, field: str) -> dict[str, int]:
    """Where things sit in the machine that runs, however large it is to be."""
    size = {"memory_mib": runs.before.memory_mib, "dimms_mib": runs.before.dimms_mib}
    return devices.slots(msgspec.structs.replace(wished, spec=msgspec.structs.replace(wished.spec, **size)), field)


def _late(runs: Runs, part: str, slot: int) -> Reason | None:
    """Why something cannot be plugged in now."""
    if not devices.is_hot(runs.before):
        why = "this machine takes no devices as it runs (a microvm, or very small): it gets it at the next start"
    elif slot < HOT_SLOT:
        why = "its place is on the board, which is filled at the next start"
    else:
        return None
    return Reason("plug.waits", why, part, RESTART)


def _same_card(one: Nic, other: Nic) -> bool:
    """Whether the guest and the node would see no difference. What a filter lets through is no part of a card."""
    return all(
        getattr(one, field) == getattr(other, field) for field in ("mac", "network", "bridge", "network_id")
    ) and ([forward.guest_port for forward in one.forwards] == [forward.guest_port for forward in other.forwards])


def _drives(wished: Launch, runs: Runs) -> Steps:
    specs = {devices.drive_id(one.id): one for one in wished.media}
    for device, one in specs.items():
        if device not in runs.drives:
            yield Reason("drive.waits", "a CD-ROM drive comes at the next start", one.id, RESTART)
        elif runs.drives[device] != (str(one.path) if one.path else ""):
            yield Load(one.id, one.path)
    for device in sorted(runs.drives.keys() - specs.keys()):
        part = device.removeprefix(devices.DRIVE)
        yield Reason("drive.waits", "a CD-ROM drive leaves at the next start", part, RESTART)


# -- vCPUs and memory ------------------------------------------------------------------------------------------


def _cpus(wished: Launch, runs: Runs) -> Steps:
    there = [cpu for cpu in runs.cpus if cpu.path]
    free = [cpu for cpu in runs.cpus if not cpu.path]
    count = len(there) or runs.before.vcpus
    more = wished.spec.vcpus - count
    if more > 0 and free and runs.accelerator == EMULATED:
        yield _emulated("vcpus", f"{wished.spec.vcpus} vCPUs")
        return
    if more > len(free):
        most = count + len(free)
        why = f"it was started with at most {most} vCPUs: {wished.spec.vcpus} count from the next start"
        yield Reason("vcpus.limit", why, "vcpus", RESTART)
        more = len(free)
    for number in range(more):
        yield PlugCpu(free[number], count + number)
    if more < 0 and not runs.cpus:
        yield Reason("vcpus.limit", "a machine of this kind keeps its vCPUs until the next start", "vcpus", RESTART)
    for cpu in reversed(there[count + more :] if more < 0 else ()):
        yield UnplugCpu(cpu.path)


def _memory(wished: Launch, runs: Runs) -> Steps:
    before, dimms = runs.before, list(runs.dimms_mib)
    more = wished.spec.memory_mib - devices.base_mib(before) - sum(dimms)
    if more > 0:
        refusal = _no_growth(before, wished.spec.memory_mib, more, len(dimms))
        if refusal is None and runs.accelerator == EMULATED:
            refusal = _emulated("memory_mib", f"{wished.spec.memory_mib} MiB")
        yield refusal or PlugMemory(len(dimms), more)
    while more < 0 and dimms and dimms[-1] <= -more:
        more += dimms.pop()
        yield UnplugMemory(len(dimms))
    if more < 0:
        why = "memory leaves only as it came, in the same pieces; the rest leaves at the next start"
        yield Reason("memory.stays", why, "memory_mib", RESTART)


def _emulated(part: str, wish: str) -> Reason:
    why = f"an emulated machine cannot safely grow as it runs (this node has no KVM): {wish} count from the next start"
    return Reason("tcg.keeps", why, part, RESTART)


def _no_growth(before: MachineSpec, wished_mib: int, more_mib: int, dimms: int) -> Reason | None:
    if not can_grow(before) or wished_mib > before.max_memory_mib:
        most = max(before.max_memory_mib, before.memory_mib) if can_grow(before) else before.memory_mib
        why = f"it was started with at most {most} MiB: {wished_mib} MiB count from the next start"
    elif more_mib % DIMM_MIB:
        why = f"memory is plugged in in steps of {DIMM_MIB} MiB: {wished_mib} MiB count from the next start"
    elif dimms >= MEMORY_SLOTS:
        why = f"its {MEMORY_SLOTS} places for memory are taken: {wished_mib} MiB count from the next start"
    else:
        return None
    return Reason("memory.limit", why, "memory_mib", RESTART)


# -- what came of it -------------------------------------------------------------------------------------------


def _present(wished: Iterable[Any], before: Iterable[Any], runs: Runs, key: str, prefix: str) -> Iterator[Any]:
    """Those that run: in the words of the wish, else as they were."""
    named = {getattr(part, key): part for part in (*before, *wished)}
    order = dict.fromkeys([*(getattr(part, key) for part in wished), *named])
    return (named[name] for name in order if prefix + name in runs.devices)


def _disk_as_runs(disk: Disk, runs: Runs) -> Disk:
    seen = runs.disks.get(disk.volume_id)
    order = _boot_order(disk.volume_id, {one.volume_id: one for one in runs.before.disks})
    if seen is None:
        return msgspec.structs.replace(disk, boot_order=order)
    size_bytes = min(disk.size_bytes, seen.size_bytes)
    return msgspec.structs.replace(disk, size_bytes=size_bytes, qos=seen.qos, boot_order=order)


def _card_as_runs(nic: Nic, runs: Runs) -> Nic:
    cards = {one.id: one for one in runs.before.nics}
    if nic.id in cards and not _same_card(cards[nic.id], nic):
        return cards[nic.id]
    return msgspec.structs.replace(nic, boot_order=_boot_order(nic.id, cards))


def _drive_as_runs(one: Media, path: Path | None, runs: Runs) -> Media:
    """A drive whose medium could not be changed holds what it held."""
    there = runs.drives.get(devices.drive_id(one.id), "")
    if there == (str(path) if path else ""):
        return one
    held = {before.id: before.digest for before in runs.before.media}
    return msgspec.structs.replace(one, digest=held.get(one.id, "") if there else "")
