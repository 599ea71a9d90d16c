"""QEMU's command line from a Launch and what this host offers. Pure.

The only texts of a tenant that reach it are the VM's id and, as one element that QEMU hands to the guest unread, the
kernel's command line. Everything with parts is JSON, so that no value can end early and begin another. Each device
has an address of its own (see devices): adding a disk moves no card, and both ends of a migration agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import CONSOLE_FILE, FileAt, Launch
from novacron.agent.drivers.qemu import devices
from novacron.errors import Unsupported
from novacron.model.identity import is_id
from novacron.model.machine import HOT_FROM_MIB, DriveBus, Firmware, MachineKind, MachineSpec

VNC_SOCKET = "vnc.sock"
VARS_FILE = "vars.fd"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
SCREEN_FROM_MIB = 64
MEMORY_SLOTS = 16
TCG_EXTRA_KIB = 8  # QEMU rounds memory up to this
DIRTY_PAGES_TOLD_SINCE = (9, 0)

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_VERSION = re.compile(r"-(\d+)\.(\d+)\Z")
_LINE = re.compile(r"[\x20-\x7e]*\Z")


class Uefi(msgspec.Struct, frozen=True):
    """UEFI firmware of this host: the code, and the template of a machine's variable store. Both raw."""

    code: Path
    variables: Path
    secure: bool = False


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine gets here. machine_type and cpu_model are names QEMU itself listed.

    network_rom: there is what BIOS runs to boot from a network card.
    """

    binary: str
    accelerator: str  # kvm | tcg
    machine_type: str
    cpu_model: str
    uefi: Uefi | None = None
    network_rom: bool = False


class Sockets(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors of listening sockets QEMU inherits. guest_agent None: the machine has no such channel.

    memory: of the open file that is to be its memory, for a machine whose launch has one.
    """

    agent: int
    rescue: int
    guest_agent: int | None = None
    tpm: int | None = None
    memory: int | None = None


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
        *_board(launch, host, sockets.memory),
        *_boot(launch, host),
        *_console(),
        *_devices(launch, sockets),
        *(("-incoming", "defer") if incoming else ()),
    ]


def has_screen(launch: Launch) -> bool:
    """Whether the machine has a VGA card and a VNC socket."""
    return launch.spec.machine is MachineKind.Q35 and launch.spec.memory_mib >= SCREEN_FROM_MIB


def variables(launch: Launch) -> Path:
    """Where its UEFI variables are: beside its volumes, when there is such a place."""
    return (launch.keep or launch.run_dir) / VARS_FILE


def wants_uefi(launch: Launch) -> bool:
    return launch.spec.firmware is Firmware.UEFI


def wants_network_rom(launch: Launch) -> bool:
    """Whether it boots from a card and its firmware needs help with that; UEFI has drivers and PXE of its own."""
    boots = devices.boot_indexes(launch)
    return not wants_uefi(launch) and any(devices.nic_id(nic.nic_id) in boots for nic in launch.nics)


def _check(launch: Launch, host: Host) -> None:
    spec = launch.spec
    if not is_id(spec.vm_id):
        raise Unsupported(f"{spec.vm_id!r} is not a VM id")
    for name, value in (("machine type", host.machine_type), ("CPU model", host.cpu_model)):
        if _WORD.match(value) is None:
            raise Unsupported(f"{value!r} is not a {name}")
    if _LINE.match(spec.boot.cmdline) is None:
        raise Unsupported("the kernel command line holds characters that are not printable ASCII")
    if launch.media and spec.machine is not MachineKind.Q35:
        raise Unsupported("CD-ROM drives go with q35 machines")
    if any(one.bus is DriveBus.SCSI for one in launch.media) and not devices.is_hot(spec):
        raise Unsupported(f"CD-ROM drives on SCSI go with machines of {HOT_FROM_MIB} MiB and more")
    if wants_network_rom(launch) and not host.network_rom:
        raise Unsupported(
            "this node has no ROM for network cards to boot from: install iPXE (Debian: package ipxe-qemu)"
        )
    if wants_uefi(launch) and (spec.machine is not MachineKind.Q35 or launch.firmware or launch.kernel):
        raise Unsupported("UEFI boots q35 machines from a disk")
    if wants_uefi(launch) and host.uefi is None:
        raise Unsupported("this node has no UEFI firmware: install OVMF (Debian: package ovmf)")
    if spec.secure_boot and (host.uefi is None or not host.uefi.secure):
        raise Unsupported("Secure Boot goes with UEFI, and with firmware that has it (Debian: package ovmf)")
    if spec.tpm and spec.machine is not MachineKind.Q35:
        raise Unsupported("a TPM goes with q35 machines")


# -- the board -----------------------------------------------------------------------------------------------


def _monitors(sockets: Sockets) -> Iterator[str]:
    # QEMU waits for the agent, which opens both at once: a client that comes while a monitor is being set up may be
    # greeted twice (once in 2,400 starts of QEMU 7.2).
    for name, descriptor in (("agent", sockets.agent), ("rescue", sockets.rescue)):
        yield from ("-chardev", f"socket,id=monitor-{name},fd={descriptor},server=on,wait=on")
        yield from ("-mon", f"chardev=monitor-{name},mode=control")


def _board(launch: Launch, host: Host, memory_file: int | None) -> Iterator[str]:
    spec = launch.spec
    machine = [host.machine_type, "dump-guest-core=off"]
    if spec.machine is MachineKind.MICROVM:
        machine += ["x-option-roms=off", "isa-serial=on", "rtc=on"]
    else:
        machine += ["usb=off", "vmport=off"]
    if wants_uefi(launch):
        machine += ["pflash0=uefi-code", "pflash1=uefi-variables"]
    machine += ["memory-backend=memory"] if spec.shared_memory else []
    if spec.secure_boot:  # the variables are written from system management mode alone
        machine += ["smm=on"]
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
    yield from ("-machine", ",".join(machine))
    if host.accelerator == "kvm":
        # enforce: better no start than a guest that finds a flag missing after it moved here
        yield from ("-accel", "kvm", "-cpu", f"{host.cpu_model},enforce=on")
    else:
        yield from ("-accel", f"tcg,tb-size={_translation_mib(spec.memory_mib)}", "-cpu", host.cpu_model)
    base_kib = _memory_kib(devices.base_mib(spec), host)
    growth = f",slots={MEMORY_SLOTS},maxmem={spec.max_memory_mib}M" if can_grow(spec) else ""
    yield from ("-m", f"size={base_kib}K{growth}")
    if spec.shared_memory:  # always by that name, so that it may move to where it is no file
        yield from _json("-object", _base_memory(base_kib, memory_file, shared=launch.memory_shared))
    for index, size_mib in enumerate(spec.dimms_mib):
        yield from _json("-object", memory(index, size_mib))
        yield from _device(dimm(index))
    cores = max(spec.vcpus, spec.max_vcpus) if spec.machine is MachineKind.Q35 else spec.vcpus
    most = f"maxcpus={cores}," if cores > spec.vcpus else ""
    yield from ("-smp", f"cpus={spec.vcpus},{most}sockets=1,cores={cores},threads=1")


def can_grow(spec: MachineSpec) -> bool:
    """Whether memory can be plugged in while it runs."""
    return devices.is_hot(spec) and spec.max_memory_mib > devices.base_mib(spec)


def memory(index: int, size_mib: int) -> dict[str, object]:
    """What stands behind the memory that was plugged in as number `index`."""
    return {"qom-type": "memory-backend-ram", "id": f"memory{index}", "size": size_mib << 20}


def dimm(index: int) -> dict[str, object]:
    return {"driver": "pc-dimm", "id": f"dimm{index}", "memdev": f"memory{index}", "slot": index}


def _base_memory(size_kib: int, file: int | None, *, shared: bool) -> dict[str, object]:
    backend: dict[str, object] = {"id": "memory", "size": size_kib << 10}
    if file is None:
        return {"qom-type": "memory-backend-ram", **backend}
    return {"qom-type": "memory-backend-file", **backend, "mem-path": f"/proc/self/fd/{file}", "share": shared}


def _memory_kib(memory_mib: int, host: Host) -> int:
    """The guest's memory. Under TCG, where a QEMU before 9.0 may run it, 8 KiB more than asked for: none of it is lost.

    QEMU before 9.0 looks for dirty pages 64 at a time when memory is a whole number of 256 KiB, and then forgets to
    tell TCG that they are clean again: what a busy guest writes meanwhile does not travel, and it dies on the target
    (7.2.22, CPU qemu64: all of 64 migrations of a guest that dirtied 200 MiB/s). A guest kernel that changes page
    tables at every system call, as on Intel models, mostly hides it. Any other size takes the careful way: none died.
    Its price: the first look at all of memory holds the guest up for about 0.25 ms a MiB (512 MiB: 15 → 140 ms).
    A machine type of 9.0 or later is known to no QEMU that needs this.
    """
    careful = host.accelerator == "tcg" and _version(host.machine_type) < DIRTY_PAGES_TOLD_SINCE
    return (memory_mib << 10) + (TCG_EXTRA_KIB if careful else 0)


def _version(machine_type: str) -> tuple[int, int]:
    """Of the QEMU that first had this machine type. (0, 0): it does not say."""
    found = _VERSION.search(machine_type)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _translation_mib(memory_mib: int) -> int:
    """TCG keeps translated code beside the guest; a quarter of the guest is ample, and small guests stay small."""
    return max(8, min(256, memory_mib // 4))


def _boot(launch: Launch, host: Host) -> Iterator[str]:
    if wants_uefi(launch) and host.uefi is not None:
        yield from _flash("uefi-code", host.uefi.code, read_only=True)
        yield from _flash("uefi-variables", variables(launch), read_only=False)
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
    spec = launch.spec
    pci = spec.machine is MachineKind.Q35
    if has_screen(launch):
        yield from ("-vnc", f"unix:{VNC_SOCKET}")
        yield from _device({"driver": "VGA", "id": "screen", **devices.at("screen"), "vgamem_mb": 8})
    yield from _json("-object", {"qom-type": "rng-builtin", "id": "rng"})
    yield from _device(devices.virtio("rng", "rng", {"rng": "rng"}, devices.at("rng"), pci=pci))
    if sockets.guest_agent is not None:
        yield from ("-chardev", f"socket,id=guest-agent,fd={sockets.guest_agent},server=on,wait=off")
        yield from _device(devices.virtio("serial", "serial", {"max_ports": 2}, devices.at("serial"), pci=pci))
        port = {"chardev": "guest-agent", "name": "org.qemu.guest_agent.0"}
        yield from _device({"driver": "virtserialport", "id": "guest-agent", **port})
    if pci and spec.shared_memory:  # a copy's kernel sees another number than its parent's and makes new randomness
        yield from _device({"driver": "vmgenid", "id": "generation", "guid": spec.vm_id})
    if sockets.tpm is not None:
        yield from ("-chardev", f"socket,id=tpm,fd={sockets.tpm}", "-tpmdev", "emulator,id=tpm,chardev=tpm")
        yield from _device({"driver": "tpm-crb", "id": "tpm-device", "tpmdev": "tpm"})
    for fixture in devices.fixtures(spec):
        yield from _device(fixture)
    yield from _disks(launch)
    yield from _drives(launch)
    if launch.seed is not None:
        seed = {"node-name": "seed", **devices.layer(FileAt(launch.seed), "raw", read_only=True)}
        yield from _json("-blockdev", seed)
        yield from _device(devices.virtio("blk", "seed", {"drive": "seed"}, devices.at("seed"), pci=pci))
    yield from _cards(launch)


def _cards(launch: Launch) -> Iterator[str]:
    indexes, places = devices.boot_indexes(launch), devices.slots(launch, "nics")
    rom = wants_network_rom(launch)
    for nic in launch.nics:
        index = indexes.get(devices.nic_id(nic.nic_id), 0)
        yield from _json("-netdev", devices.netdev(nic))
        yield from _device(devices.card(nic, places[nic.nic_id], launch.spec, index, rom=rom))


def _disks(launch: Launch) -> Iterator[str]:
    indexes, places = devices.boot_indexes(launch), devices.slots(launch, "disks")
    secrets = {str(secret["id"]): secret for disk in launch.disks for secret in devices.secrets(disk)}
    for secret in secrets.values():
        yield from _json("-object", secret)
    for disk in launch.disks:
        yield from _json("-blockdev", devices.storage(disk))
        index = indexes.get(devices.disk_id(disk.volume_id), 0)
        yield from _device(devices.disk_device(disk, places[disk.volume_id], launch.spec, index))


def _drives(launch: Launch) -> Iterator[str]:
    indexes, drives = devices.boot_indexes(launch), devices.slots(launch, "media")
    for one in launch.media:
        if one.path is not None:
            yield from _json("-blockdev", devices.medium(one.path, one.id))
        yield from _device(devices.drive(one, drives[one.id], indexes.get(devices.drive_id(one.id), 0)))


def _flash(name: str, path: Path, *, read_only: bool) -> Iterator[str]:
    file = {"driver": "file", "filename": str(path), "read-only": read_only}
    yield from _json("-blockdev", {"node-name": name, "driver": "raw", "read-only": read_only, "file": file})


def _device(told: Mapping[str, object]) -> Iterator[str]:
    yield from _json("-device", told)


def _json(option: str, value: Mapping[str, object]) -> Sequence[str]:
    return (option, msgspec.json.encode(value).decode())
