"""A Debian for tests, built once and kept, and a word with the guest agent inside one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import guest_agent
from novacron.cli import debian
from novacron.client import images, networks, vms
from novacron.errors import NovaCronError
from novacron.lab.guest.build import cache_dirs
from novacron.lab.lab import Lab, open_lab
from novacron.model.image import FileRole

BOOT_S = 420.0
RUN_S = 120.0
GIB = 1 << 30
MTU = 1450
RESOLVER = "10.20.0.53"
CLOUD = debian.Wish()
GENERIC = debian.Wish(packages=("linux-image-amd64",))
"""With the drivers of real hardware: CD-ROM drives, the VM generation id."""
_NAMES = {FileRole.DISK: "disk.qcow2", FileRole.KERNEL: "vmlinuz", FileRole.INITRD: "initrd"}

needs_debian = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root builds an image, and namespaces need root"),
    pytest.mark.skipif(not all(map(shutil.which, ("nft", "dnsmasq"))), reason="nft or dnsmasq is not installed"),
]


def image_files(wish: debian.Wish) -> dict[FileRole, Path]:
    """The image's files: built when the recipe is another than the kept ones'; those go then."""
    family = "-".join(("debian", *wish.packages))
    recipe = hashlib.sha256(Path(debian.__file__).read_bytes() + repr(wish).encode()).hexdigest()[:12]
    kept = cache_dirs()[0] / family / recipe
    if not kept.is_dir():
        _build(wish, kept)
    return {role: kept / name for role, name in _NAMES.items()}


def _build(wish: debian.Wish, kept: Path) -> None:
    try:
        debian.own_mirror(wish.suite)
    except NovaCronError as none:
        pytest.skip(f"no mirror: {none.message}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with _beside(kept) as making, debian.built(wish, lambda _: None) as made:
        for path, name in zip((made.disk, made.kernel, made.initrd), _NAMES.values(), strict=True):
            shutil.copyfile(path, making / name)
        for old in kept.parent.glob("[0-9a-f]*"):
            shutil.rmtree(old)
        making.rename(kept)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    making = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextlib.asynccontextmanager
async def debian_lab(wish: debian.Wish = CLOUD) -> AsyncIterator[Lab]:
    """Two nodes on a network of their own, the image `debian`, and the overlay network `web` that gives addresses."""
    files = await asyncio.to_thread(image_files, wish)
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", bridged=True) as lab:
            await lab.client.do(images.create(images.ImageCreate(name="debian", cmdline=debian.CMDLINE)))
            for role, file in files.items():
                await lab.client.upload("debian", role, file)
            await lab.client.do(images.seal("debian"))
            web = networks.NetworkCreate(name="web", ipv4="10.20.0.0/24", mode="nat", dns=[RESOLVER], mtu=MTU)
            await lab.client.do(networks.create(web))
            yield lab


class Guest:
    """The inside of a VM, as root."""

    def __init__(self, lab: Lab, vm: vms.Vm) -> None:
        self.lab = lab
        self.vm = vm

    async def does(self, script: str) -> str:
        """What a shell script says. It must succeed."""
        arguments = {"path": "/bin/sh", "arg": ["-euc", script], "capture-output": True}
        pid = (await self._ask("guest-exec", arguments))["pid"]
        async with asyncio.timeout(RUN_S):
            while not (seen := await self._ask("guest-exec-status", {"pid": pid}))["exited"]:
                await asyncio.sleep(0.02)
        said = {kind: base64.b64decode(str(seen.get(f"{kind}-data", ""))).decode() for kind in ("out", "err")}
        assert seen["exitcode"] == 0, (script, said)
        return said["out"].strip()

    async def says(self, script: str, wanted: str, within_s: float = 60.0) -> None:
        """Return once the script says so."""
        end = time.monotonic() + within_s
        while (said := await self.does(script)) != wanted:
            assert time.monotonic() < end, f"{script}: {said!r}, not {wanted!r}"
            await asyncio.sleep(0.1)

    async def booted(self) -> None:
        """Return once cloud-init and what it was told to do is done."""
        end = time.monotonic() + BOOT_S
        while True:
            try:
                await self.does("test -e /run/cloud-init/result.json -a -e /var/lib/cloud/instance/boot-finished")
            except (AssertionError, NovaCronError, OSError):
                assert time.monotonic() < end, (await self.console())[-2000:]
                await asyncio.sleep(0.5)
            else:
                return

    async def console(self) -> str:
        return (await self.lab.client.do(vms.console_log(self.vm.id))).text

    async def _ask(self, command: str, arguments: dict[str, object]) -> dict[str, object]:
        path = next(self.lab.path.glob(f"node-*/run/{self.vm.id}/qga.sock"))
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        connection.connect(str(path))
        answer = await guest_agent.ask(connection, secrets.randbits(31), command, arguments, 30)
        assert isinstance(answer, dict)
        return answer
