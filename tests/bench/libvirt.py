"""libvirt as a peer in the migration bench: a libvirtd of our own on each node, `virsh migrate --live` between them.

Each libvirtd lives in its node's network namespace and in a mount namespace where every directory it is compiled for
lies in the bench's own, so it neither sees nor touches a libvirt of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles
from novacron.lab.namespaces import Namespace, bind, empty
from novacron.lab.network import BRIDGE

COMMAND = ["libvirtd"]
READY_S = 30.0
DEADLINE_S = 120.0
PLACES = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
NAMES = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false\n",
    "group": "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
}

LIBVIRTD_CONF = """
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
migration_address = "{host}"
migration_host = "{host}"
migrate_tls_x509_cert_dir = "{pki}"
migrate_tls_x509_verify = 0
migrate_tls_force = 0
"""
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline></os>
  <features><acpi/></features>
  <cpu mode='custom'><model>{cpu}</model></cpu>
  <devices><emulator>{emulator}</emulator>
    <interface type='bridge'><source bridge='{bridge}'/><mac address='{mac}'/><model type='virtio'/></interface>
    <rng model='virtio'><backend model='builtin'/></rng><memballoon model='none'/>
  </devices>
</domain>
"""


def missing() -> str:
    """Why libvirt cannot take part; empty: it can."""
    lacking = [
        tool
        for tool in ("virsh", "libvirtd", "openssl", "/etc/libvirt")
        if not (shutil.which(tool) or Path(tool).is_dir())
    ]
    return f"libvirt: no {' and no '.join(lacking)} on this machine" if lacking else ""


class Daemon:
    """One libvirtd."""

    def __init__(self, directory: Path, place: Namespace, host: str, pki: Path) -> None:
        self.socket = directory / "run" / "libvirt-sock"
        for name in PLACES:
            (directory / name).mkdir(parents=True)
        (directory / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
        (directory / "etc" / "qemu.conf").write_text(QEMU_CONF.format(host=host, pki=pki))
        self._log = directory / "libvirtd.log"

        def start() -> subprocess.Popen[bytes]:
            _hide_the_machines_own(directory)
            with self._log.open("wb") as log:
                return subprocess.Popen(
                    ["libvirtd"],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

        self.process = place.run_as_node(start)

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.socket}"

    async def until_ready(self) -> None:
        end = time.monotonic() + READY_S
        while (await virsh(self.uri, "version")).returncode:
            if time.monotonic() > end or self.process.poll() is not None:
                raise LabFailed.because(f"libvirtd does not answer: {self._log.read_text()[-500:]}")
            await asyncio.sleep(0.1)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_S)


class Libvirt:
    """Two daemons; `COMMAND` runs in `directory` from now on. Both ends hold one certificate for streams over TLS."""

    def __init__(self, directory: Path, nodes: list[Namespace], hosts: list[str]) -> None:
        self.directory, self.hosts = directory, hosts
        pki = directory / "pki"
        pki.mkdir()
        certify(pki, hosts)
        self.daemons = [
            Daemon(directory / str(number), node, host, pki)
            for number, (node, host) in enumerate(zip(nodes, hosts, strict=True))
        ]

    async def until_ready(self) -> None:
        """:raise LabFailed: one does not answer."""
        for daemon in self.daemons:
            await daemon.until_ready()

    async def end(self) -> None:
        for daemon in self.daemons:
            await asyncio.to_thread(daemon.end)


class Machine(NamedTuple):
    """What a domain is to be like, so that it is like NovaCron's."""

    files: GuestFiles
    machine: str
    cpu: str
    memory_mib: int


class Domain:
    """A domain that moves between the two."""

    def __init__(self, libvirt: Libvirt, name: str, *, tls: bool) -> None:
        self._libvirt, self._name, self._tls = libvirt, name, tls
        self._at = 0

    async def boot(self, like: Machine, guest: int, address: str) -> None:
        """:raise LabFailed: libvirt refuses."""
        # Copies in our own directory: the cleanup knows the QEMU by them.
        directory = self._libvirt.directory
        kernel, initrd = (shutil.copy(file, directory) for file in (like.files.kernel, like.files.initrd))
        domain = directory / f"{self._name}.xml"
        domain.write_text(
            DOMAIN.format(
                name=self._name,
                memory_mib=like.memory_mib,
                machine=like.machine,
                cpu=like.cpu,
                kernel=kernel,
                initrd=initrd,
                mac=f"02:00:00:00:01:{guest:02x}",
                cmdline=f"{like.files.cmdline} novacron.ip={address}",
                emulator=shutil.which("qemu-system-x86_64"),
                bridge=BRIDGE,
            )
        )
        await self._do("create", str(domain))

    async def migrate(self, *more: str) -> float:
        """Milliseconds until virsh is done. :raise LabFailed: it did not move."""
        target = 1 - self._at
        words = ("--live", *(("--tls",) if self._tls else ()), *more)
        began = time.monotonic()
        uri, host = self._libvirt.daemons[target].uri, self._libvirt.hosts[target]
        await self._do("migrate", *words, self._name, uri, f"tcp://{host}")
        wall_ms = (time.monotonic() - began) * 1e3
        self._at = target
        return wall_ms

    async def call_off(self) -> None:
        """End the migration that is under way."""
        await self._do("domjobabort", self._name)

    async def rest(self) -> None:
        await self._do("suspend", self._name)

    async def wake(self) -> None:
        await self._do("resume", self._name)

    async def end(self) -> None:
        with contextlib.suppress(LabFailed):
            await self._do("destroy", self._name)

    async def _do(self, *words: str) -> None:
        done = await virsh(self._libvirt.daemons[self._at].uri, *words)
        if done.returncode:
            raise LabFailed.because(f"virsh {words[0]}: {done.stderr.strip()}")


def certify(folder: Path, hosts: list[str]) -> None:
    """What QEMU wants to find in its directory: an authority, and one certificate of it for all these addresses.

    :raise LabFailed: openssl refuses.
    """
    names = ",".join(f"IP:{host}" for host in hosts)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    authority = ["-subj", "/CN=bench-ca", "-keyout", str(folder / "ca-key.pem"), "-out", str(folder / "ca-cert.pem")]
    # fmt: off
    certificate = [
        "-subj", "/CN=bench", "-CA", str(folder / "ca-cert.pem"), "-CAkey", str(folder / "ca-key.pem"),
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={names}",
        "-keyout", str(folder / "server-key.pem"), "-out", str(folder / "server-cert.pem"),
    ]
    # fmt: on
    for words in (authority, certificate):
        done = subprocess.run([*made, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabFailed.because(f"openssl made no certificate: {done.stderr.strip()}")
    for name in ("cert", "key"):
        shutil.copy(folder / f"server-{name}.pem", folder / f"client-{name}.pem")


def _hide_the_machines_own(directory: Path) -> None:
    """In a mount namespace of its own: libvirt's directories are ours, whether the machine has any or not."""
    lab = directory.parent
    kept = os.open(lab, os.O_PATH)
    for parent in {Path(place).parent for place in PLACES.values()} - {Path("/etc")}:
        empty(parent)
    lab.mkdir(parents=True, exist_ok=True)
    bind(Path(f"/proc/self/fd/{kept}"), lab)
    os.close(kept)
    for name, place in PLACES.items():
        Path(place).mkdir(exist_ok=True)
        bind(directory / name, Path(place))
    for name, entry in NAMES.items():  # Debian's own user, which only the full package makes
        known = (Path("/etc") / name).read_text()
        (directory / name).write_text(known if "libvirt-qemu:" in known else known + entry)
        bind(directory / name, Path("/etc") / name)


async def virsh(uri: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "XDG_CACHE_HOME": "/nonexistent"}
    return await asyncio.to_thread(
        lambda: subprocess.run(
            ["virsh", "-q", "-c", uri, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            env=environment,
        )
    )
