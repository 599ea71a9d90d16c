"""Builds a Debian image on this machine: a root file system made by mmdebstrap (or debootstrap), its kernel beside it.

The image boots by its kernel and initrd, so it needs neither boot loader nor partitions: its disk is one ext4 file
system that cloud-init grows to the disk's size. It takes its settings from a NoCloud seed, has the guest agent, an SSH
server and a serial console, and nobody's keys, passwords or machine id.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from novacron.errors import DriverError, InvalidInput, Reason, Unsupported

LABEL = "cloudroot"
CMDLINE = f"root=LABEL={LABEL} ro console=tty0 console=ttyS0,115200"
KERNEL = "linux-image-cloud-amd64"
"""Small, for it has few drivers but those of virtual hardware: none of AHCI, nor of the VM generation id."""
PACKAGES = (
    "systemd-sysv", "udev", "dbus", "cloud-init", "ifupdown", "isc-dhcp-client", "iproute2",
    "openssh-server", "qemu-guest-agent", "e2fsprogs", "ca-certificates", "sudo",
)  # fmt: skip
BUILD_WITHIN_S = 1800
WORDS = 800  # of what a tool says when it fails

_SUITE = re.compile(r"[a-z]{3,20}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,80}\Z")
_MIRROR = re.compile(r"https?://[A-Za-z0-9._:/~\[\]-]{1,200}\Z")
_CLOUD = """datasource_list: [NoCloud, None]
locale: false  # there are none to choose from
manage_etc_hosts: localhost
updates: {network: {when: [boot-new-instance, boot]}}  # cards come and go between boots
"""
_LATE_CARD = (
    'ACTION=="add|move", SUBSYSTEM=="net", KERNEL=="e*", TAG+="systemd",'
    ' ENV{SYSTEMD_WANTS}+="late-card@$name.service"\n'
)
_LATE_CARD_SERVICE = """[Unit]
Description=DHCP for %I, plugged in as the machine runs
ConditionPathExists=/run/cloud-init/result.json
BindsTo=sys-subsystem-net-devices-%i.device
After=sys-subsystem-net-devices-%i.device

[Service]
ExecStart=/sbin/dhclient -4 -d -pf /run/dhclient.%i.pid -lf /var/lib/dhcp/dhclient.%i.leases %I
"""
_FILES = {
    "etc/fstab": f"LABEL={LABEL} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n",
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",
    "etc/resolv.conf": "",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n",
    "etc/cloud/cloud.cfg.d/90_novacron.cfg": _CLOUD,
    "etc/udev/rules.d/90-late-card.rules": _LATE_CARD,
    "etc/systemd/system/late-card@.service": _LATE_CARD_SERVICE,
}

Say = Callable[[str], None]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. mirror: empty for the one this machine's apt uses; size_bytes: of the disk."""

    suite: str = "bookworm"
    mirror: str = ""
    packages: tuple[str, ...] = ()
    size_bytes: int = 2 << 30


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """The image's files, and the kernel's command line."""

    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str = CMDLINE


@contextmanager
def built(wish: Wish, say: Say) -> Iterator[Built]:
    """The files for the length of the block, in a directory that is gone afterwards.

    :raise InvalidInput: a field of the wish is not allowed. :raise Unsupported: a tool or root is missing.
    :raise DriverError: a tool failed; with its words.
    """
    _check(wish)
    tool = _tools()
    mirror = wish.mirror or own_mirror(wish.suite)
    with tempfile.TemporaryDirectory(prefix="novacron-image-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:  # noqa: S108
        directory = Path(name)
        directory.chmod(0o755)  # the package manager's own user enters it
        root = directory / "root"
        say(f"fetching Debian {wish.suite} from {mirror}")
        _bootstrap(tool, wish, mirror, root)
        say("setting it up")
        _set_up(root)
        kernel, initrd = _boot_files(root, directory)
        say("making its disk")
        yield Built(disk=_disk(root, directory, wish.size_bytes), kernel=kernel, initrd=initrd)


def own_mirror(suite: str) -> str:
    """Where this machine's apt gets that suite. :raise InvalidInput: nowhere."""
    said = _run(["apt-get", "indextargets", "--format", "$(CODENAME) $(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    for line in said.splitlines():
        names, _, uri = line.rpartition(" ")
        if suite in names.split() and _MIRROR.match(uri):
            return uri
    raise InvalidInput.field("mirror", f"apt on this machine knows no mirror of {suite}", "give --mirror URL")


def _check(wish: Wish) -> None:
    if not _SUITE.match(wish.suite):
        raise InvalidInput.field("suite", "is not the name of a Debian release", "give bookworm, for example")
    if wish.mirror and not _MIRROR.match(wish.mirror):
        raise InvalidInput.field("mirror", "is not the address of a mirror", "give http://HOST/debian")
    for package in wish.packages:
        if not _PACKAGE.match(package):
            raise InvalidInput.field("package", f"{package[:80]!r} is not the name of a package", "give one name each")
    if wish.size_bytes < 1 << 30 or wish.size_bytes % (1 << 20):
        raise InvalidInput.field("size", "is too small for a Debian, or not whole MiB", "give 1GiB or more")


def _tools() -> str:
    """mmdebstrap, or debootstrap where only that is. :raise Unsupported"""
    if os.geteuid() != 0:
        raise Unsupported(
            "an image's files belong to root: only root can build one",
            [Reason("build.root", "this user is not root", remedy="run it with sudo")],
        )
    tool = shutil.which("mmdebstrap") or shutil.which("debootstrap", path=_path())
    missing = [name for name in ("mkfs.ext4", "qemu-img") if shutil.which(name, path=_path()) is None]
    if tool is None or missing:
        names = ", ".join([*missing, *([] if tool else ["mmdebstrap"])])
        remedy = "apt-get install mmdebstrap e2fsprogs qemu-utils"
        raise Unsupported(
            f"to build an image this machine lacks {names}", [Reason("build.tools", names, remedy=remedy)]
        )
    return tool


def _bootstrap(tool: str, wish: Wish, mirror: str, root: Path) -> None:
    wanted = ",".join(wanted_packages(wish))
    if tool.endswith("/mmdebstrap"):
        _run([tool, "--quiet", "--variant=minbase", f"--include={wanted}", wish.suite, str(root), mirror])
    else:
        _run([tool, "--variant=minbase", f"--include={wanted}", wish.suite, str(root), mirror])


def wanted_packages(wish: Wish) -> tuple[str, ...]:
    """What is installed, each once: with the usual kernel unless another is wished for."""
    kernel = () if any(name.startswith("linux-image-") for name in wish.packages) else (KERNEL,)
    return tuple(dict.fromkeys((*kernel, *PACKAGES, *wish.packages)))


def _set_up(root: Path) -> None:
    """Settings in, everything that belongs to one machine out. Nothing is written through a link."""
    for name, content in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(content)
    for pattern in ("etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/cache/apt/archives/*.deb", "var/log/*.log"):
        for path in root.glob(pattern):
            path.unlink()


def _boot_files(root: Path, directory: Path) -> tuple[Path, Path]:
    found = []
    for prefix in ("vmlinuz-", "initrd.img-"):
        path = max((root / "boot").glob(f"{prefix}*"), default=None, key=lambda one: one.name)
        if path is None:
            raise DriverError(f"the packages brought no {prefix.rstrip('-.')}: a kernel is needed")
        found.append(path.rename(directory / prefix.partition("-")[0].partition(".")[0]))
    return found[0], found[1]


def _disk(root: Path, directory: Path, size_bytes: int) -> Path:
    """The file system, then the same as compressed qcow2."""
    raw, disk = directory / "disk.raw", directory / "disk.qcow2"
    _run(["mkfs.ext4", "-q", "-F", "-L", LABEL, "-d", str(root), str(raw), f"{size_bytes >> 20}M"])
    _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compat=1.1", str(raw), str(disk)])
    raw.unlink()
    return disk


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(command: Sequence[str]) -> str:
    """What the tool says on stdout. :raise DriverError: it failed."""
    name = Path(command[0]).name
    kept = {
        key: value for key, value in os.environ.items() if key in ("TMPDIR", "http_proxy", "https_proxy", "no_proxy")
    }
    try:
        done = subprocess.run(  # noqa: S603 (a list of checked words, no shell)
            command,
            env={"PATH": _path(), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **kept},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_WITHIN_S,
            check=False,
        )
    except FileNotFoundError as missing:
        raise Unsupported(f"this machine has no {name}") from missing
    except subprocess.TimeoutExpired as late:
        raise DriverError(f"{name} did not end within {BUILD_WITHIN_S} s") from late
    if done.returncode != 0:
        raise DriverError(f"{name} failed: {done.stderr.strip()[-WORDS:] or f'it ended with {done.returncode}'}")
    return done.stdout
