"""A Ceph cluster of one monitor, one manager and one OSD on a sparse file, on ports of loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.ports import free_port
from tests.system.servers.process import run, serving

POOL = "vms"
DAEMONS = ("ceph-mon", "ceph-mgr", "ceph-osd", "rbd")

missing = None
if not all(map(shutil.which, DAEMONS)):
    missing = "ceph is not installed: scripts/system-packages slow"
elif not Path("/usr/lib/x86_64-linux-gnu/qemu/block-rbd.so").exists():
    missing = "qemu-block-extra is not installed"
elif os.geteuid() != 0:
    missing = "the tests' Ceph cluster needs root"

CONF = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
public_network = 127.0.0.0/8
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_delete = true
mon_allow_pool_size_one = true
admin_socket = {dir}/$name.asok
mgr_initial_modules =
[mon]
mon_data = {dir}/mon
keyring = {dir}/keyring
[mgr]
mgr_data = {dir}/mgr
keyring = {dir}/keyring
[osd]
osd_data = {dir}/osd
keyring = {dir}/keyring
osd_memory_target = 939524096
bluestore_block_size = 8589934592
"""


class Cluster(msgspec.Struct, frozen=True):
    """conf: readable by everybody. keyring: of the user `vms`, who may use the pool alone; readable by root."""

    conf: Path
    keyring: Path
    admin: tuple[str, ...]

    def namespace(self) -> str:
        """A new, empty corner of the pool."""
        name = f"ns-{uuid.uuid4().hex[:12]}"
        run("rbd", *self.admin, "namespace", "create", f"{POOL}/{name}")
        return name


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Ready to keep RBD images; its processes and files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="novacron-ceph-") as place, contextlib.ExitStack() as stack:
        home = Path(place)
        home.chmod(0o755)
        conf, keyring = home / "ceph.conf", home / "keyring"
        fsid = str(uuid.uuid4())
        conf.write_text(CONF.format(fsid=fsid, v2=free_port(), v1=free_port(), dir=home))
        for name in ("mon", "mgr", "osd"):
            (home / name).mkdir()
        _make_keys(keyring)
        admin = ("--conf", str(conf), "--keyring", str(keyring), "--id", "admin")
        _start_mon(stack, home, fsid, admin)
        stack.enter_context(serving(("ceph-mgr", "-f", "-i", "x", "-c", conf), home / "mgr.log", lambda: True))
        _start_osd(stack, home, admin)
        run("ceph", *admin, "osd", "pool", "create", POOL, "8")
        run("ceph", *admin, "osd", "pool", "application", "enable", POOL, "rbd")
        mine = run(
            "ceph",
            *admin,
            "auth",
            "get-or-create",
            "client.vms",
            "mon",
            "profile rbd",
            "osd",
            f"profile rbd pool={POOL}",
        )
        (home / "vms.keyring").write_text(mine)
        (home / "vms.keyring").chmod(0o600)
        yield Cluster(conf, home / "vms.keyring", admin)


def _make_keys(keyring: Path) -> None:
    everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
    run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    for name in ("client.admin", "mgr.x", "osd.0"):
        run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)


def _start_mon(stack: contextlib.ExitStack, home: Path, fsid: str, admin: tuple[str, ...]) -> None:
    conf = home / "ceph.conf"
    at = next(line.partition("= ")[2] for line in conf.read_text().splitlines() if line.startswith("mon_host"))
    run("monmaptool", "--create", "--addv", "a", at, "--fsid", fsid, home / "monmap")
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", home / "monmap", "--keyring", home / "keyring", "-c", conf)

    def is_ready() -> bool:
        asked = subprocess.run(
            ["ceph", *admin, "--connect-timeout", "2", "quorum_status"], capture_output=True, check=False
        )
        return asked.returncode == 0

    stack.enter_context(serving(("ceph-mon", "-f", "-i", "a", "-c", conf), home / "mon.log", is_ready))


def _start_osd(stack: contextlib.ExitStack, home: Path, admin: tuple[str, ...]) -> None:
    conf, mine = home / "ceph.conf", str(uuid.uuid4())
    run("ceph", *admin, "osd", "new", mine, "0")
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", mine, "-c", conf)
    run("ceph", *admin, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h0")

    def is_up() -> bool:
        return bool(json.loads(run("ceph", *admin, "osd", "stat", "--format", "json"))["num_up_osds"])

    stack.enter_context(serving(("ceph-osd", "-f", "-i", "0", "-c", conf), home / "osd.log", is_up))
