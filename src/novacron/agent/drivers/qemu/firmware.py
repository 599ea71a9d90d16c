"""UEFI firmware as the distribution describes it (QEMU's firmware descriptors), and the ROM cards boot with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.agent.drivers.qemu.command import Uefi

DESCRIPTORS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
NETWORK_ROM = "efi-virtio.rom"  # it has iPXE for BIOS, too
_ROMS = ("share/qemu", "lib/ipxe/qemu", "share/ipxe/qemu")
"""Where QEMU looks for it, seen from where its programs' directory is."""
NETWORK_BOOT = "network-boot"
"""The feature of a node that has it."""
MAX_BYTES = 64 << 10
SECURE = frozenset({"requires-smm", "enrolled-keys", "secure-boot"})
_UNWANTED = frozenset({"amd-sev-es"})


class _File(msgspec.Struct):
    """A flash image."""

    filename: str
    format: str


class _Mapping(msgspec.Struct, rename="kebab"):
    """How the firmware is mapped; ours are flash with a template for the variables."""

    device: str
    executable: _File | None = None
    nvram_template: _File | None = None


class _Target(msgspec.Struct):
    """What it runs on."""

    architecture: str
    machines: list[str] = []


class _Descriptor(msgspec.Struct, rename="kebab"):
    """One firmware."""

    mapping: _Mapping
    interface_types: list[str] = []
    targets: list[_Target] = []
    features: list[str] = []


def find_uefi(folders: tuple[Path, ...] = DESCRIPTORS, *, secure: bool = False) -> Uefi | None:
    """UEFI for q35, by the descriptors' own order of preference; None: there is none.

    secure: with Secure Boot, the usual keys enrolled, its variables guarded by SMM; else with nothing of that.
    """
    files = {file.name: file for folder in reversed(folders) for file in folder.glob("*.json")}
    for name in sorted(files):
        try:
            found = _uefi(secure, msgspec.json.decode(files[name].read_bytes()[:MAX_BYTES], type=_Descriptor))
        except (OSError, msgspec.DecodeError):
            continue  # a descriptor we cannot read offers us nothing
        if found is not None:
            return found
    return None


def has_network_rom(binary: Path) -> bool:
    """Whether that QEMU finds what BIOS runs to boot from a virtio network card."""
    return any((binary.resolve().parent.parent / at / NETWORK_ROM).is_file() for at in _ROMS)


def _uefi(secure: bool, descriptor: _Descriptor) -> Uefi | None:
    code, variables = descriptor.mapping.executable, descriptor.mapping.nvram_template
    fits = any(
        target.architecture == "x86_64" and any(machine.startswith("pc-q35") for machine in target.machines)
        for target in descriptor.targets
    )
    if not fits or "uefi" not in descriptor.interface_types or not _is(secure, set(descriptor.features)):
        return None
    if code is None or variables is None or (code.format, variables.format) != ("raw", "raw"):
        return None
    found = Uefi(code=Path(code.filename), variables=Path(variables.filename), secure=secure)
    return found if found.code.is_file() and found.variables.is_file() else None


def _is(secure: bool, features: set[str]) -> bool:
    wanted = features >= SECURE if secure else not features & SECURE
    return wanted and not features & _UNWANTED
