"""QEMU's command line from a Launch and what this host offers. Pure.

The only texts of a tenant that reach it are the VM's id and, as one element that QEMU hands to the guest unread, the
kernel's command line. Everything with parts is JSON, so that no value can end early and begin another. Each device
has an address of its own kind's range: adding a disk moves no card, and both ends of a migration agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import CONSOLE_FILE, DiskFile, FileAt, IscsiAt, Launch, NbdAt, NicPlug, RbdAt, Source
from novacron.errors import Unsupported
from novacron.model.identity import is_id
from novacron.model.machine import Firmware, MachineKind

VNC_SOCKET = "vnc.sock"
VARS_FILE = "vars.fd"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
LOOPBACK = "127.0.0.1"

MAX_DISKS = 17
MAX_NICS = 8
SPARE_PORTS = 2  # each port costs downtime: a machine with 20 of them stood still five times as long
SCREEN_FROM_MIB = 64
TCG_EXTRA_KIB = 8  # QEMU rounds memory up to this
PORTS_FROM_MIB = 128
_SLOT = {"screen": 0x01, "rng": 0x02, "serial": 0x03, "disk": 0x04, "seed": 0x15, "nic": 0x16, "port": 0x1E}

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_LINE = re.compile(r"[\x20-\x7e]*\Z")


class Uefi(msgspec.Struct, frozen=True):
    """UEFI firmware of this host: the code, and the template of a machine's variable store. Both raw."""

    code: Path
    variables: Path


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine gets here. machine_type and cpu_model are names QEMU itself listed."""

    binary: str
    accelerator: str  # kvm | tcg
    machine_type: str
    cpu_model: str
    uefi: Uefi | None = None


class Sockets(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors of listening sockets QEMU inherits. guest_agent None: the machine has no such channel."""

    agent: int
    rescue: int
    guest_agent: int | None = None


def command(launch: Launch, host: Host, sockets: Sockets, *, incoming: bool) -> list[str]:
    """The whole argv. The machine is made paused; `incoming`: it waits to be told where a stream comes from.

    :raise Unsupported: something in the Launch cannot be built here, or is not of the form it must have.
    """
    _check(launch, host)
    return [
        host.binary,
        *("-nodefaults", "-no-user-config", "-only-migratable", "-no-shutdown", "-S"),
        *("-sandbox", SANDBOX, "-msg", "timestamp=on", "-rtc", "base=utc", "-display", "none"),
        *("-uuid", launch.spec.vm_id, "-name", f"{launch.spec.vm_id},debug-threads=on"),
        *_monitors(sockets),
        *_board(launch, host),
        *_boot(launch, host),
        *_console(),
        *_devices(launch, sockets),
        *(("-incoming", "defer") if incoming else ()),
    ]


def has_screen(launch: Launch) -> bool:
    """Whether the machine has a VGA card and a VNC socket."""
    return launch.spec.machine is MachineKind.Q35 and launch.spec.memory_mib >= SCREEN_FROM_MIB


def wants_uefi(launch: Launch) -> bool:
    return launch.spec.firmware is Firmware.UEFI


def _check(launch: Launch, host: Host) -> None:
    spec = launch.spec
    if not is_id(spec.vm_id):
        raise Unsupported(f"{spec.vm_id!r} is not a VM id")
    for name, value in (("machine type", host.machine_type), ("CPU model", host.cpu_model)):
        if _WORD.match(value) is None:
            raise Unsupported(f"{value!r} is not a {name}")
    if _LINE.match(spec.boot.cmdline) is None:
        raise Unsupported("the kernel command line holds characters that are not printable ASCII")
    if len(launch.disks) > MAX_DISKS or len(launch.nics) > MAX_NICS:
        raise Unsupported(f"a machine takes at most {MAX_DISKS} disks and {MAX_NICS} network cards")
    if wants_uefi(launch) and (spec.machine is not MachineKind.Q35 or launch.firmware or launch.kernel):
        raise Unsupported("UEFI boots q35 machines from a disk")
    if wants_uefi(launch) and host.uefi is None:
        raise Unsupported("this node has no UEFI firmware: install OVMF (Debian: package ovmf)")


# -- the board -----------------------------------------------------------------------------------------------


def _monitors(sockets: Sockets) -> Iterator[str]:
    for name, descriptor in (("agent", sockets.agent), ("rescue", sockets.rescue)):
        yield from ("-chardev", f"socket,id=monitor-{name},fd={descriptor},server=on,wait=off")
        yield from ("-mon", f"chardev=monitor-{name},mode=control")


def _board(launch: Launch, host: Host) -> Iterator[str]:
    spec = launch.spec
    machine = [host.machine_type, "dump-guest-core=off"]
    if spec.machine is MachineKind.MICROVM:
        machine += ["x-option-roms=off", "isa-serial=on", "rtc=on"]
    else:
        machine += ["usb=off", "vmport=off"]
    if wants_uefi(launch):
        machine += ["pflash0=uefi-code", "pflash1=uefi-variables"]
    yield from ("-machine", ",".join(machine))
    if host.accelerator == "kvm":
        # enforce: better no start than a guest that finds a flag missing after it moved here
        yield from ("-accel", "kvm", "-cpu", f"{host.cpu_model},enforce=on")
    else:
        yield from ("-accel", f"tcg,tb-size={_translation_mib(spec.memory_mib)}", "-cpu", host.cpu_model)
    yield from ("-m", f"size={_memory_kib(spec.memory_mib, host.accelerator)}K")
    yield from ("-smp", f"cpus={spec.vcpus},sockets=1,cores={spec.vcpus},threads=1")


def _memory_kib(memory_mib: int, accelerator: str) -> int:
    """The guest's memory. Under TCG 8 KiB more than asked for, so that a migration loses none of it.

    QEMU before 9.0 looks for dirty pages 64 at a time when memory is a whole number of 256 KiB, and then forgets to
    tell TCG that they are clean again: what a busy guest writes meanwhile does not travel, and it dies on the target
    (7.2.22, CPU qemu64: all of 64 migrations of a guest that dirtied 200 MiB/s). A guest kernel that changes page
    tables at every system call, as on Intel models, mostly hides it. Any other size takes the careful way: none died.
    Its price: the first look at all of memory holds the guest up for about 0.25 ms a MiB (512 MiB: 15 → 140 ms).
    """
    return (memory_mib << 10) + (TCG_EXTRA_KIB if accelerator == "tcg" else 0)


def _translation_mib(memory_mib: int) -> int:
    """TCG keeps translated code beside the guest; a quarter of the guest is ample, and small guests stay small."""
    return max(8, min(256, memory_mib // 4))


def _boot(launch: Launch, host: Host) -> Iterator[str]:
    if wants_uefi(launch) and host.uefi is not None:
        yield from _flash("uefi-code", host.uefi.code, read_only=True)
        yield from _flash("uefi-variables", launch.run_dir / VARS_FILE, read_only=False)
    if launch.firmware is not None:
        yield from ("-bios", str(launch.firmware))
    if launch.kernel is not None:
        yield from ("-kernel", str(launch.kernel))
        yield from ("-append", _kernel_line(launch, host))
        if launch.initrd is not None:
            yield from ("-initrd", str(launch.initrd))


def _kernel_line(launch: Launch, host: Host) -> str:
    words = launch.spec.boot.cmdline.split()
    if not any(word.startswith("console=") for word in words):
        words.append("console=ttyS0")
    # Calibrating the TSC against a microvm's timers under TCG hangs at random.
    calibrates = launch.spec.machine is MachineKind.MICROVM and host.accelerator == "tcg"
    if calibrates and not any(word.startswith("tsc_early_khz=") for word in words):
        words.append("tsc_early_khz=1000000")
    return " ".join(words)


def _console() -> Iterator[str]:
    yield from ("-chardev", f"file,id=console,path={CONSOLE_FILE},append=on", "-serial", "chardev:console")


# -- devices -------------------------------------------------------------------------------------------------


def _devices(launch: Launch, sockets: Sockets) -> Iterator[str]:
    pci = launch.spec.machine is MachineKind.Q35
    if has_screen(launch):
        yield from ("-vnc", f"unix:{VNC_SOCKET}")
        yield from _device("VGA", "screen", {"vgamem_mb": 8}, _at("screen", 0))
    yield from _json("-object", {"qom-type": "rng-builtin", "id": "rng"})
    yield from _virtio("rng", "rng", {"rng": "rng"}, 0, pci=pci)
    if sockets.guest_agent is not None:
        yield from ("-chardev", f"socket,id=guest-agent,fd={sockets.guest_agent},server=on,wait=off")
        yield from _virtio("serial", "serial", {"max_ports": 2}, 0, pci=pci)
        port = {"chardev": "guest-agent", "name": "org.qemu.guest_agent.0"}
        yield from _device("virtserialport", "guest-agent", port, {})
    for index, disk in enumerate(launch.disks):
        yield from _disk(index, disk, boots=launch.kernel is None and launch.firmware is None, pci=pci)
    if launch.seed is not None:
        yield from _json("-blockdev", {"node-name": "seed", **_layer(FileAt(launch.seed), "raw", read_only=True)})
        yield from _virtio("blk", "seed", {"drive": "seed"}, 0, pci=pci)
    for index, nic in enumerate(launch.nics):
        yield from _nic(index, nic, pci=pci)
    if pci and launch.spec.memory_mib >= PORTS_FROM_MIB:
        for index in range(SPARE_PORTS):
            port_at: dict[str, object] = {"bus": "pcie.0", "addr": f"{_SLOT['port']:#x}.{index:#x}"}
            port_at |= {"multifunction": True} if index == 0 else {}
            yield from _device("pcie-root-port", f"port{index}", {"chassis": index + 1}, port_at)


def _disk(index: int, disk: DiskFile, *, boots: bool, pci: bool) -> Iterator[str]:
    """Every layer is told with its format, down to the end, so that QEMU looks into no file to find out."""
    chain: Mapping[str, object] | None = None
    for below in reversed(disk.backing):
        chain = _layer(below.source, below.format, read_only=True, backing=chain)
    top = _layer(disk.source, disk.format, read_only=False, backing=chain)
    yield from _json("-blockdev", {"node-name": f"disk{index}", **top})
    options: dict[str, object] = {"drive": f"disk{index}", "serial": disk.volume_id[-20:]}
    options |= {"werror": "stop", "rerror": "stop"}
    options |= {"bootindex": index + 1} if boots else {}
    yield from _virtio("blk", "disk", options, index, pci=pci)


def _layer(
    source: Source, form: str, *, read_only: bool, backing: Mapping[str, object] | None = None
) -> dict[str, object]:
    if form not in ("qcow2", "raw"):
        raise Unsupported(f"{form!r} is not a disk format: qcow2 and raw are")
    if form == "raw" and backing is not None:
        raise Unsupported("a raw disk has no backing file")
    cache = {"direct": False, "no-flush": False}
    file = {**_protocol(source), "read-only": read_only, "cache": cache, "discard": "unmap"}
    layer = {"driver": form, "read-only": read_only, "cache": cache, "discard": "unmap", "file": file}
    return layer | ({"backing": backing} if form == "qcow2" else {})


def _protocol(source: Source) -> dict[str, object]:
    match source:
        case FileAt(path):
            return {"driver": "file", "filename": str(path)}
        case RbdAt():
            return {
                "driver": "rbd", "pool": source.pool, "image": source.image, "conf": str(source.conf),
                "user": source.user,
            }  # fmt: skip
        case NbdAt():
            server: dict[str, object] = {"type": "inet", "host": source.host, "port": str(source.port)}
            if source.socket is not None:
                server = {"type": "unix", "path": str(source.socket)}
            return {"driver": "nbd", "server": server, "export": source.export}
        case IscsiAt():
            secret = {"user": source.user, "password-secret": f"iscsi-{source.user}"} if source.password_file else {}
            where = {"portal": source.portal, "target": source.target, "lun": source.lun}
            return {"driver": "iscsi", "transport": "tcp", **where, **secret}


def _flash(name: str, path: Path, *, read_only: bool) -> Iterator[str]:
    file = {"driver": "file", "filename": str(path), "read-only": read_only}
    yield from _json("-blockdev", {"node-name": name, "driver": "raw", "read-only": read_only, "file": file})


def _nic(index: int, nic: NicPlug, *, pci: bool) -> Iterator[str]:
    name = f"net{index}"
    if nic.tap:
        plug = {"type": "tap", "id": name, "ifname": nic.tap, "script": "no", "downscript": "no", "vhost": False}
    else:
        forwards = [{"str": f"tcp:{LOOPBACK}:{host:d}-:{guest:d}"} for guest, host in nic.forwards]
        plug = {"type": "user", "id": name, "hostfwd": forwards}
    yield from _json("-netdev", plug)
    options: dict[str, object] = {"netdev": name, "mac": nic.mac}
    options |= {"romfile": ""} if pci else {}  # no network boot, and no ROM to carry along
    yield from _virtio("net", "nic", options, index, pci=pci)


def _virtio(kind: str, family: str, options: Mapping[str, object], index: int, *, pci: bool) -> Iterator[str]:
    name = f"{family}{index}" if family in ("disk", "nic") else family
    yield from _device(f"virtio-{kind}-{'pci' if pci else 'device'}", name, options, _at(family, index) if pci else {})


def _at(family: str, index: int) -> dict[str, object]:
    return {"bus": "pcie.0", "addr": f"{_SLOT[family] + index:#x}"}


def _device(driver: str, name: str, options: Mapping[str, object], at: Mapping[str, object]) -> Iterator[str]:
    yield from _json("-device", {"driver": driver, "id": name, **at, **options})


def _json(option: str, value: Mapping[str, object]) -> Sequence[str]:
    return (option, msgspec.json.encode(value).decode())
