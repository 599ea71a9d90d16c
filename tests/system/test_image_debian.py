"""A Debian image built here from the machine's own mirror, booted by the driver, set up by cloud-init."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent import seed
from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Layer, NicPlug
from novacron.agent.drivers.qemu import guest_agent
from novacron.cli import debian
from novacron.control.images.inspect import inspect_file
from novacron.errors import InvalidInput, NovaCronError
from novacron.model.image import DiskFormat, FileRole
from novacron.model.machine import BootFiles, CloudInit, MachineStatus, StopMode
from tests.ports import free_port
from tests.system import rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu, until, with_spec

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow, pytest.mark.root, needs_qemu]

BOOT_S = 420.0
GIB = 1 << 30
MAC = "52:4e:43:00:00:07"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3Jt0Jp0f6nQe0ZkqNf1Jq0h3pQk3C9qkHq0mT4XAAA someone@somewhere"
USER_DATA = f"""#cloud-config
hostname: web-7
ssh_authorized_keys: ["{KEY}"]
write_files:
  - {{path: /etc/novacron-marker, content: written-by-cloud-init}}
runcmd:
  - |
    (echo "MARK file $(cat /etc/novacron-marker)"
    echo "MARK host $(hostname)"
    echo "MARK key $(cut -d' ' -f2 /home/debian/.ssh/authorized_keys)"
    echo "MARK address $(ip -4 -br address show dev net0 | awk '{{print $3}}')"
    echo "MARK size $(df --output=size -B1 / | tail -1)"
    echo "MARK id $(wc -c < /etc/machine-id)"
    echo "MARK done yes") > /dev/ttyS0
"""
NETWORK = f"""version: 2
ethernets:
  net0:
    match: {{macaddress: "{MAC}"}}
    set-name: net0
    addresses: [10.0.2.15/25]
    gateway4: 10.0.2.2
"""


@pytest.fixture(scope="module")
def image() -> Iterator[debian.Built]:
    if os.geteuid() != 0:
        pytest.skip("only root can build an image")
    try:
        debian.own_mirror("bookworm")
    except NovaCronError as none:
        pytest.skip(f"no mirror: {none.message}")
    steps: list[str] = []
    with debian.built(debian.Wish(packages=("tree",), size_bytes=2 * GIB), steps.append) as made:
        assert len(steps) == 3
        yield made


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


def launch(host: Host, image: debian.Built, forward: int) -> Launch:
    vm_id = an_id()
    plain = host.launch(vm_id, memory_mib=1024)
    plain = with_spec(plain, boot=BootFiles(cmdline=image.cmdline), guest_agent=True, vcpus=2)
    volume = host.root / "root.qcow2"
    options = f"backing_file={image.disk},backing_fmt=qcow2"
    command = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(volume), str(4 * GIB))
    assert os.spawnvp(os.P_WAIT, command[0], command) == 0
    path = plain.run_dir / "seed.iso"
    seed.write(path, vm_id, CloudInit(user_data=USER_DATA, network_config=NETWORK), None)
    disk = DiskFile(
        volume_id=an_id(),
        source=FileAt(volume),
        format="qcow2",
        backing=(Layer(FileAt(image.disk), "qcow2"),),
    )
    nic = NicPlug(nic_id="n", mac=MAC, forwards=((22, forward),))
    return msgspec.structs.replace(
        plain, firmware=None, kernel=image.kernel, initrd=image.initrd, seed=path, disks=(disk,), nics=(nic,)
    )


def marks(console: bytes) -> dict[str, str]:
    found = re.findall(r"^MARK (\w+) (.*?)\r?$", console.decode("utf-8", "replace"), re.MULTILINE)
    return dict(found)


async def banner(port: int, within_s: float) -> bytes:
    """What the guest's SSH server says first."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(5):
                line = await reader.readline()
        except (TimeoutError, OSError):
            line = b""
        finally:
            writer.transport.abort()
        if line:
            return line
        await asyncio.sleep(0.2)
    return b""


async def test_it_boots_and_does_what_cloud_init_tells_it(hosts: Hosts, image: debian.Built) -> None:
    found = inspect_file(FileRole.DISK, image.disk)
    assert (found.format, found.virtual_size_bytes) == (DiskFormat.QCOW2, 2 * GIB)
    inspect_file(FileRole.KERNEL, image.kernel)
    inspect_file(FileRole.INITRD, image.initrd)
    port = free_port()
    host = hosts.new()
    driver = host.driver()
    what = launch(host, image, port)
    vm_id = what.spec.vm_id
    await driver.start(what)
    await until(lambda: b"MARK done" in host.console(vm_id), "the end of cloud-init", BOOT_S)

    told = marks(host.console(vm_id))
    assert told["file"] == "written-by-cloud-init"
    assert told["host"] == "web-7"
    assert told["key"] == KEY.split()[1]
    assert told["address"] == "10.0.2.15/25"
    assert int(told["size"]) > 3.5 * GIB  # grown to its disk
    assert told["id"] == "33"  # a machine id of its own
    agent = socket.socket(socket.AF_UNIX)
    agent.setblocking(False)
    agent.connect(str(what.run_dir / "qga.sock"))
    answer = await guest_agent.ask(agent, 7, "guest-get-host-name", {}, 60)
    assert answer == {"host-name": "web-7"}
    assert (await banner(port, 60)).startswith(b"SSH-2.0-OpenSSH")
    report = await driver.stop(vm_id, StopMode.GRACEFUL, 120)
    assert report.status is MachineStatus.STOPPED


@pytest.mark.parametrize(
    "wish",
    [
        {"suite": "../etc"},
        {"suite": "-o"},
        {"mirror": "file:///etc"},
        {"mirror": "--hook=x"},
        {"packages": ("vim --hook",)},
        {"packages": ("-x",)},
        {"packages": ("a,b",)},
        {"size_bytes": 1 << 20},
    ],
)
def test_only_plain_words_reach_the_tools(wish: dict[str, object]) -> None:
    with pytest.raises(InvalidInput), debian.built(debian.Wish(**wish), lambda _: None):  # type: ignore[arg-type]
        pytest.fail("it was built")


def test_another_kernel_takes_the_place_of_the_usual_one() -> None:
    assert debian.wanted_packages(debian.Wish()).count(debian.KERNEL) == 1
    other = debian.wanted_packages(debian.Wish(packages=("linux-image-amd64", "sudo")))
    assert "linux-image-amd64" in other
    assert debian.KERNEL not in other
    assert other.count("sudo") == 1


def test_what_is_made_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    wish = debian.Wish(mirror="http://127.0.0.1:1/debian")
    with pytest.raises(NovaCronError), debian.built(wish, lambda _: None):
        pytest.fail("there is no mirror")
    assert list(tmp_path.iterdir()) == []
