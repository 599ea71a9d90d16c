"""QEMU's command line as data: what it says for each kind of machine, and what can never reach it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Layer, Medium, NicPlug
from novacron.agent.drivers.qemu.command import Host, Sockets, Uefi, command
from novacron.errors import Unsupported
from novacron.model.machine import (
    HOT_SLOT,
    BootFiles,
    Disk,
    DriveBus,
    Firmware,
    MachineKind,
    MachineSpec,
    Media,
    Nic,
)

VM = "018f0000-0000-7000-8000-000000000001"
SPEC = MachineSpec(vm_id=VM, generation=1, vcpus=2, memory_mib=512)
PLAIN = Launch(spec=SPEC, run_dir=Path("/run/vm"))
UEFI = Uefi(code=Path("/fw/CODE.fd"), variables=Path("/fw/VARS.fd"))
TCG = Host(binary="qemu", accelerator="tcg", machine_type="pc-q35-7.2", cpu_model="Nehalem", uefi=UEFI)
KVM = msgspec.structs.replace(TCG, accelerator="kvm", cpu_model="Skylake-Server-noTSX")
MICROVM = msgspec.structs.replace(TCG, machine_type="microvm")
SOCKETS = Sockets(agent=7, rescue=8)

ALWAYS = f"""
qemu -nodefaults -no-user-config -only-migratable -no-shutdown -S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on -rtc base=utc
-display none -uuid {VM} -name {VM},debug-threads=on
-chardev socket,id=monitor-agent,fd=7,server=on,wait=on -mon chardev=monitor-agent,mode=control
-chardev socket,id=monitor-rescue,fd=8,server=on,wait=on -mon chardev=monitor-rescue,mode=control
"""
CONSOLE = "-chardev file,id=console,path=console.log,append=on -serial chardev:console"
SCREEN = '-vnc unix:vnc.sock -device {"driver":"VGA","id":"screen","bus":"pcie.0","addr":"0x1","vgamem_mb":8}'
RNG = (
    '-object {"qom-type":"rng-builtin","id":"rng"} '
    '-device {"driver":"virtio-rng-pci","id":"rng","bus":"pcie.0","addr":"0x2","rng":"rng"}'
)
PORTS = " ".join(
    f'-device {{"driver":"pcie-root-port","id":"port{n}","bus":"pcie.0","addr":"0x1e.{n:#x}",{rest}"chassis":{n + 1}}}'
    for n, rest in enumerate(('"multifunction":true,', ""))
)
SCSI = '-device {"driver":"virtio-scsi-pci","id":"scsi","bus":"pcie.0","addr":"0x1e.0x2","num_queues":1}'


def build(launch: Launch, host: Host = TCG, sockets: Sockets = SOCKETS, *, incoming: bool = False) -> list[str]:
    return command(launch, host, sockets, incoming=incoming)


def spec(launch: Launch, **changes: Any) -> Launch:
    return msgspec.structs.replace(launch, spec=msgspec.structs.replace(launch.spec, **changes))


def values(argv: Sequence[str], option: str) -> list[str]:
    return [value for before, value in itertools.pairwise(argv) if before == option]


def devices(argv: Sequence[str], option: str = "-device") -> dict[str, dict[str, Any]]:
    found = [json.loads(value) for value in values(argv, option)]
    return {device.get("id") or device["node-name"]: device for device in found}


# -- each kind of machine, whole --------------------------------------------------------------------------------


def test_q35_from_a_firmware_file_whole() -> None:
    launch = msgspec.structs.replace(PLAIN, firmware=Path("/pool/guest.rom"))
    expected = f"""{ALWAYS}
        -machine pc-q35-7.2,dump-guest-core=off,usb=off,vmport=off -accel tcg,tb-size=128 -cpu Nehalem
        -m size=524296K -smp cpus=2,sockets=1,cores=2,threads=1
        -bios /pool/guest.rom {CONSOLE} {SCREEN} {RNG} {PORTS} {SCSI}"""
    assert build(launch) == expected.split()


def test_direct_kernel_under_kvm_whole() -> None:
    launch = spec(PLAIN, boot=BootFiles(cmdline="quiet"), memory_mib=32, vcpus=1)
    launch = msgspec.structs.replace(launch, kernel=Path("/pool/vmlinuz"), initrd=Path("/pool/initrd"))
    before = f"""{ALWAYS}
        -machine pc-q35-7.2,dump-guest-core=off,usb=off,vmport=off -accel kvm
        -cpu Skylake-Server-noTSX,enforce=on -m size=32768K -smp cpus=1,sockets=1,cores=1,threads=1
        -kernel /pool/vmlinuz -append"""
    after = f"-initrd /pool/initrd {CONSOLE} {RNG} -incoming defer"
    expected = [*before.split(), "quiet console=ttyS0", *after.split()]
    assert build(launch, KVM, incoming=True) == expected


def test_microvm_whole() -> None:
    launch = spec(PLAIN, machine=MachineKind.MICROVM, memory_mib=128)
    launch = msgspec.structs.replace(
        launch, kernel=Path("/pool/vmlinuz"), nics=(NicPlug(nic_id="n", mac="52:54:00:00:00:01", tap="nvtap0"),)
    )
    before = f"""{ALWAYS}
        -machine microvm,dump-guest-core=off,x-option-roms=off,isa-serial=on,rtc=on -accel tcg,tb-size=32 -cpu Nehalem
        -m size=131080K -smp cpus=2,sockets=1,cores=2,threads=1 -kernel /pool/vmlinuz -append"""
    after = f"""{CONSOLE}
        -object {{"qom-type":"rng-builtin","id":"rng"}} -device {{"driver":"virtio-rng-device","id":"rng","rng":"rng"}}
        -netdev {{"type":"tap","id":"net-n","ifname":"nvtap0","script":"no","downscript":"no","vhost":false}}
        -device {{"driver":"virtio-net-device","id":"nic-n","netdev":"net-n","mac":"52:54:00:00:00:01"}}"""
    expected = [*before.split(), "console=ttyS0 tsc_early_khz=1000000", *after.split()]
    assert build(launch, MICROVM) == expected


def test_uefi_keeps_its_variables_in_the_machines_own_directory() -> None:
    argv = build(spec(PLAIN, firmware=Firmware.UEFI))
    assert values(argv, "-machine") == [
        "pc-q35-7.2,dump-guest-core=off,usb=off,vmport=off,pflash0=uefi-code,pflash1=uefi-variables"
    ]
    flash = devices(argv, "-blockdev")
    assert (flash["uefi-code"]["read-only"], flash["uefi-code"]["file"]["filename"]) == (True, "/fw/CODE.fd")
    assert flash["uefi-variables"]["read-only"] is False
    assert flash["uefi-variables"]["file"]["filename"] == "/run/vm/vars.fd"
    assert {image["driver"] for image in flash.values()} == {"raw"}


# -- parts -------------------------------------------------------------------------------------------------------


def test_every_layer_of_a_disk_is_told_and_nothing_below_is_probed() -> None:
    disk = DiskFile(
        volume_id="018f0000-0000-7000-8000-00000000000d",
        source=FileAt(Path("/pool/v")),
        format="qcow2",
        backing=(Layer(FileAt(Path("/pool/a")), "qcow2"), Layer(FileAt(Path("/pool/b")), "raw")),
    )
    argv = build(msgspec.structs.replace(PLAIN, disks=(disk,)))
    top = devices(argv, "-blockdev")["v8f000000007000800000000000000d"]
    chain = [top, top["backing"], top["backing"]["backing"]]
    assert [layer["driver"] for layer in chain] == ["qcow2", "qcow2", "raw"]
    assert [layer["file"]["filename"] for layer in chain] == ["/pool/v", "/pool/a", "/pool/b"]
    assert [layer["read-only"] for layer in chain] == [False, True, True]
    assert [layer["file"]["read-only"] for layer in chain] == [False, True, True]
    assert "backing" not in chain[-1]
    alone = devices(
        build(
            msgspec.structs.replace(PLAIN, disks=(DiskFile(volume_id="v", source=FileAt(Path("/v")), format="qcow2"),))
        ),
        "-blockdev",
    )
    assert alone["vv"]["backing"] is None  # said aloud: the file's own word about it is not believed
    front = devices(argv)[f"disk-{disk.volume_id}"]
    assert (front["werror"], front["rerror"], front["bootindex"]) == ("stop", "stop", 1)
    assert top["discard"] == "unmap"


def test_the_seed_is_read_only() -> None:
    argv = build(msgspec.structs.replace(PLAIN, seed=Path("/run/vm/seed.iso")))
    seed = devices(argv, "-blockdev")["seed"]
    assert (seed["driver"], seed["read-only"], seed["file"]["read-only"]) == ("raw", True, True)
    assert devices(argv)["seed"]["drive"] == "seed"


def test_user_networks_listen_on_loopback_alone() -> None:
    nic = NicPlug(nic_id="n", mac="52:54:00:00:00:01", forwards=((80, 5001), (22, 5002)))
    (netdev,) = values(build(msgspec.structs.replace(PLAIN, nics=(nic,))), "-netdev")
    assert json.loads(netdev)["hostfwd"] == [{"str": "tcp:127.0.0.1:5001-:80"}, {"str": "tcp:127.0.0.1:5002-:22"}]


def test_a_guest_agent_gets_its_channel() -> None:
    argv = build(spec(PLAIN, guest_agent=True), sockets=Sockets(agent=7, rescue=8, guest_agent=9))
    assert devices(argv)["guest-agent"]["name"] == "org.qemu.guest_agent.0"
    assert "socket,id=guest-agent,fd=9,server=on,wait=off" in values(argv, "-chardev")


def test_adding_a_disk_moves_no_card_and_nothing_shares_an_address() -> None:
    nics = tuple(NicPlug(nic_id=str(n), mac=f"52:54:00:00:00:{n:02x}", tap=f"t{n}") for n in range(8))
    disks = tuple(DiskFile(volume_id=f"v{n}", source=FileAt(Path(f"/v{n}")), format="raw") for n in range(17))
    full = spec(msgspec.structs.replace(PLAIN, nics=nics, disks=disks, seed=Path("/s")), guest_agent=True)
    everything = devices(build(full, sockets=Sockets(agent=7, rescue=8, guest_agent=9)))
    addresses = [device["addr"] for device in everything.values() if "addr" in device]
    assert len(addresses) == len(set(addresses)) == 1 + 1 + 1 + 17 + 1 + 8 + 2 + 1
    assert not {"0x0", "0x1f"} & set(addresses)  # the chipset's own
    few = devices(build(msgspec.structs.replace(PLAIN, nics=nics, disks=disks[:1])))
    assert few["nic-7"]["addr"] == everything["nic-7"]["addr"]


def test_source_and_target_differ_in_waiting_alone() -> None:
    assert build(PLAIN, incoming=True) == [*build(PLAIN), "-incoming", "defer"]


def test_small_machines_carry_no_screen_and_no_ports() -> None:
    argv = build(spec(PLAIN, memory_mib=32))
    assert "-vnc" not in argv
    assert set(devices(argv)) == {"rng"}


@pytest.mark.parametrize("said", ["console=hvc0", "console=ttyS1 quiet"])
def test_a_console_that_was_chosen_is_kept(said: str) -> None:
    launch = msgspec.structs.replace(spec(PLAIN, boot=BootFiles(cmdline=said)), kernel=Path("/k"))
    assert values(build(launch), "-append") == [said]


# -- hostile values ------------------------------------------------------------------------------------------------

EVIL = ["a,process=x", "-S", "../x", "a\nb", "a\0b", "x" * 10_000, "q35 -incoming tcp:0:1", "", "é"]


@pytest.mark.parametrize("evil", EVIL)
def test_a_hostile_id_machine_or_cpu_is_refused(evil: str) -> None:
    for launch, host in (
        (spec(PLAIN, vm_id=evil), TCG),
        (PLAIN, msgspec.structs.replace(TCG, machine_type=evil)),
        (PLAIN, msgspec.structs.replace(TCG, cpu_model=evil)),
    ):
        with pytest.raises(Unsupported):
            build(launch, host)


@pytest.mark.parametrize("evil", ["quiet\nx", "a\0b", "\x1b[0m", "é"])
def test_a_kernel_line_that_is_no_line_is_refused(evil: str) -> None:
    with pytest.raises(Unsupported):
        build(msgspec.structs.replace(spec(PLAIN, boot=BootFiles(cmdline=evil)), kernel=Path("/k")))


@pytest.mark.parametrize("evil", ["-incoming tcp:0:1", "a,b=c", '"};{"', "$(reboot) `id` ; & |"])
def test_a_kernel_line_is_one_element_whatever_it_says(evil: str) -> None:
    launch = msgspec.structs.replace(spec(PLAIN, boot=BootFiles(cmdline=evil)), kernel=Path("/k"))
    argv = build(launch)
    assert [element for element in argv if evil in element] == [f"{evil} console=ttyS0"]
    assert argv[argv.index("-append") + 1] == f"{evil} console=ttyS0"
    plain = build(msgspec.structs.replace(spec(PLAIN, boot=BootFiles(cmdline="x")), kernel=Path("/k")))
    assert len(argv) == len(plain)


@pytest.mark.parametrize("evil", ['x","readonly":true,"y":"', "a,b=c", "-S", "json:{}", "a\nb", "fd:3"])
def test_hostile_paths_and_names_stay_inside_their_own_json_string(evil: str) -> None:
    disk = DiskFile(volume_id="v", source=FileAt(Path("/pool") / evil), format="raw")
    nic = NicPlug(nic_id="n", mac=evil, tap=evil)
    argv = build(msgspec.structs.replace(PLAIN, disks=(disk,), nics=(nic,)))
    block = devices(argv, "-blockdev")["vv"]
    assert set(block) == {"node-name", "driver", "read-only", "cache", "discard", "file"}
    assert block["file"]["filename"] == f"/pool/{evil}"
    assert devices(argv)["nic-n"]["mac"] == evil
    assert json.loads(values(argv, "-netdev")[0])["ifname"] == evil
    outside = [element for element in argv if evil in element and not element.startswith("{")]
    assert outside == [] or evil == "-S"  # -S is an option of our own


@pytest.mark.parametrize("evil", ['x","readonly":true,"y":"', "a,b=c", "../x", "a\nb", "", "x" * 37])
def test_what_names_a_device_is_an_id(evil: str) -> None:
    disk = DiskFile(volume_id=evil, source=FileAt(Path("/v")), format="raw")
    for launch in (
        msgspec.structs.replace(PLAIN, disks=(disk,)),
        msgspec.structs.replace(PLAIN, nics=(NicPlug(nic_id=evil, mac="52:54:00:00:00:01", tap="t"),)),
        msgspec.structs.replace(PLAIN, media=(Medium(id=evil),)),
    ):
        with pytest.raises(Unsupported):
            build(launch)


@pytest.mark.parametrize("form", ["vmdk", "qcow", "", "raw,file=/etc/shadow", "luks"])
def test_no_other_format_is_opened(form: str) -> None:
    with pytest.raises(Unsupported):
        build(msgspec.structs.replace(PLAIN, disks=(DiskFile(volume_id="v", source=FileAt(Path("/v")), format=form),)))


def test_what_cannot_be_built_is_refused_with_what_is_missing() -> None:
    uefi = spec(PLAIN, firmware=Firmware.UEFI)
    with pytest.raises(Unsupported, match="OVMF"):
        build(uefi, msgspec.structs.replace(TCG, uefi=None))
    with pytest.raises(Unsupported, match="q35"):
        build(spec(uefi, machine=MachineKind.MICROVM), MICROVM)
    many = tuple(DiskFile(volume_id=f"v{n}", source=FileAt(Path("/v")), format="raw") for n in range(18))
    with pytest.raises(Unsupported, match="slot 18"):
        build(msgspec.structs.replace(PLAIN, disks=many))


# -- slots, growth, drives -----------------------------------------------------------------------------------------


def a_disk(volume_id: str, boot_order: int = 0) -> DiskFile:
    return DiskFile(volume_id=volume_id, source=FileAt(Path("/pool", volume_id)), format="raw", boot_order=boot_order)


def test_devices_sit_where_their_slots_say_whatever_came_and_went() -> None:
    disks = (Disk(volume_id="a", size_bytes=1, slot=3), Disk(volume_id="b", size_bytes=1, slot=HOT_SLOT + 5))
    nics = (Nic(id="n", mac="52:54:00:00:00:01", slot=HOT_SLOT + 1),)
    launch = msgspec.structs.replace(
        spec(PLAIN, disks=disks, nics=nics),
        disks=(a_disk("a"), a_disk("b")),
        nics=(NicPlug(nic_id="n", mac="52:54:00:00:00:01", tap="t"),),
    )
    found = devices(build(launch))
    assert (found["disk-a"]["bus"], found["disk-a"]["addr"]) == ("pcie.0", "0x6")
    assert (found["disk-b"]["driver"], found["disk-b"]["bus"], found["disk-b"]["scsi-id"]) == ("scsi-hd", "scsi.0", 5)
    assert found["nic-n"]["bus"] == "port1"


def test_two_in_one_slot_are_refused() -> None:
    disks = tuple(Disk(volume_id=name, size_bytes=1, slot=2) for name in "ab")
    with pytest.raises(Unsupported, match="in one slot"):
        build(msgspec.structs.replace(spec(PLAIN, disks=disks), disks=(a_disk("a"), a_disk("b"))))


def test_both_ends_build_the_same_machine_after_it_has_grown() -> None:
    grown = spec(PLAIN, vcpus=3, max_vcpus=4, memory_mib=768, max_memory_mib=2048, dimms_mib=(128, 128))
    argv = build(grown)
    assert values(argv, "-smp") == ["cpus=3,maxcpus=4,sockets=1,cores=4,threads=1"]
    assert values(argv, "-m") == ["size=524296K,slots=16,maxmem=2048M"]
    assert [devices(argv)[f"dimm{n}"]["memdev"] for n in (0, 1)] == ["memory0", "memory1"]
    before = build(spec(PLAIN, vcpus=2, max_vcpus=4, memory_mib=512, max_memory_mib=2048))
    assert values(before, "-m") == values(argv, "-m")


def test_drives_hold_images_that_are_read_only_and_boot_in_the_order_asked_for() -> None:
    media = (Medium(id="m1", path=Path("/pool/iso"), boot_order=1), Medium(id="m2"))
    argv = build(msgspec.structs.replace(PLAIN, disks=(a_disk("a"), a_disk("b", 2)), media=media))
    found = devices(argv)
    assert (found["cd-m1"]["bus"], found["cd-m1"]["drive"]) == ("ide.0", "mm1")
    assert "drive" not in found["cd-m2"]
    assert {name: found[name]["bootindex"] for name in ("cd-m1", "disk-b", "disk-a", "cd-m2")} == {
        "cd-m1": 1, "disk-b": 2, "disk-a": 3, "cd-m2": 4,
    }  # fmt: skip
    assert devices(argv, "-blockdev")["mm1"]["read-only"] is True


def test_a_drive_on_scsi_is_a_target_after_those_of_the_disks() -> None:
    media = tuple(Media(id=f"m{slot}", slot=slot, bus=DriveBus.SCSI) for slot in (1, 4))
    disks = (Disk(volume_id="a", size_bytes=1, slot=HOT_SLOT + 15),)
    launch = msgspec.structs.replace(
        spec(PLAIN, media=media, disks=disks),
        disks=(a_disk("a"),),
        media=tuple(Medium(id=one.id, bus=one.bus) for one in media),
    )
    found = devices(build(launch))
    assert [(found[name]["driver"], found[name]["bus"]) for name in ("cd-m1", "cd-m4")] == [("scsi-cd", "scsi.0")] * 2
    assert [found[name]["scsi-id"] for name in ("disk-a", "cd-m1", "cd-m4")] == [15, 16, 19]
    with pytest.raises(Unsupported, match="128 MiB"):
        build(spec(launch, memory_mib=64, disks=()))


def test_a_record_from_before_drives_had_a_bus_means_what_it_meant() -> None:
    old = msgspec.json.decode(b'{"id":"m1","digest":"","boot_order":0,"slot":3}', type=Media)
    assert (old.bus, Medium(id="m1").bus) == (DriveBus.SATA, DriveBus.SATA)


# -- booting from the network --------------------------------------------------------------------------------------

CARDS = (
    NicPlug(nic_id="n1", mac="52:54:00:00:00:01", tap="t1"),
    NicPlug(nic_id="n2", mac="52:54:00:00:00:02", tap="t2"),
)
WITH_ROM = msgspec.structs.replace(TCG, network_rom=True)


def with_cards(*orders: int, **more: Any) -> Launch:
    nics = tuple(Nic(id=plug.nic_id, mac=plug.mac, boot_order=order) for plug, order in zip(CARDS, orders, strict=True))
    return msgspec.structs.replace(spec(PLAIN, nics=nics, **more), nics=CARDS, disks=(a_disk("a", 2), a_disk("b")))


def test_a_card_is_booted_from_when_it_has_a_number_and_only_then_has_a_rom() -> None:
    found = devices(build(with_cards(3, 0), WITH_ROM))
    assert {name: found[name].get("bootindex") for name in ("disk-a", "nic-n1", "disk-b", "nic-n2")} == {
        "disk-a": 1, "nic-n1": 2, "disk-b": 3, "nic-n2": None,
    }  # fmt: skip
    assert (found["nic-n1"].get("romfile"), found["nic-n1"]["romsize"]) == (None, 512 << 10)
    assert (found["nic-n2"]["romfile"], found["nic-n2"].get("romsize")) == ("", None)


def test_uefi_needs_no_rom_and_a_kernel_needs_no_order() -> None:
    found = devices(build(with_cards(1, 0, firmware=Firmware.UEFI)))
    assert (found["nic-n1"]["romfile"], found["nic-n1"]["bootindex"]) == ("", 1)
    found = devices(build(msgspec.structs.replace(with_cards(1, 0), kernel=Path("/pool/vmlinuz"))))
    assert (found["nic-n1"]["romfile"], found["nic-n1"].get("bootindex")) == ("", None)


def test_without_a_rom_it_does_not_start_and_says_what_to_install() -> None:
    with pytest.raises(Unsupported, match="ipxe-qemu"):
        build(with_cards(1, 0))
    assert build(with_cards(0, 0))


@pytest.mark.parametrize(
    ("accelerator", "machine_type", "kib"),
    [("tcg", "pc-q35-7.2", 8), ("tcg", "pc-q35-8.2", 8), ("tcg", "pc-q35-9.0", 0), ("tcg", "pc-q35-10.1", 0),
     ("kvm", "pc-q35-7.2", 0), ("tcg", "microvm", 8)],
)  # fmt: skip
def test_memory_is_as_asked_for_where_no_qemu_that_may_run_it_loses_writes(
    accelerator: str, machine_type: str, kib: int
) -> None:
    host = msgspec.structs.replace(TCG, accelerator=accelerator, machine_type=machine_type)
    kind = MachineKind.MICROVM if machine_type == "microvm" else MachineKind.Q35
    argv = build(spec(PLAIN, machine=kind), host)
    assert values(argv, "-m") == [f"size={(512 << 10) + kib}K"]
