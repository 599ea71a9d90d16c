"""Taps on a real bridge, in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from novacron.agent.network import tap
from novacron.agent.network.tap import TapNetwork, bridges, tap_name
from novacron.errors import InvalidInput, Unsupported
from novacron.model.machine import NetworkKind, Nic

NIC = Nic(id="01890000-0000-7000-8000-0000000000e1", mac="52:54:00:00:00:01", network=NetworkKind.BRIDGE, bridge="br0")
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes a network namespace")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]


def inside(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` in a child process with a network namespace and a /sys that shows it."""
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            run("mount", "--make-rprivate", "/")
            run("mount", "-t", "sysfs", "sysfs", "/sys")
            run("mount", "-t", "tmpfs", "tmpfs", "/dev/net")  # containers lack what udev does
            run("mknod", "-m", "666", "/dev/net/tun", "c", "10", "200")
            run("ip", "link", "add", "br0", "mtu", "1400", "type", "bridge")
            run("ip", "link", "set", "br0", "up")
            asyncio.run(work())
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def fact(name: str, what: str) -> str:
    return Path("/sys/class/net", name, what).read_text().strip()


def test_a_tap_is_made_up_owned_and_on_its_bridge_again_and_again() -> None:
    async def work() -> None:
        network = TapNetwork()
        for _ in range(2):
            plug = await network.plug(NIC, 12345)
            assert plug.tap == tap_name(NIC.id)
            assert fact(plug.tap, "owner") == "12345"
            assert fact(plug.tap, "mtu") == "1400"
            assert fact(plug.tap, "master/ifindex") == fact("br0", "ifindex")
            assert int(fact(plug.tap, "flags"), 16) & 1  # IFF_UP
            assert Path(f"/proc/sys/net/ipv6/conf/{plug.tap}/disable_ipv6").read_text().strip() == "1"
        for _ in range(2):
            await network.unplug(NIC)
            assert not Path("/sys/class/net", tap_name(NIC.id)).exists()

    inside(work)


def test_its_owner_alone_may_open_it_without_privilege() -> None:
    async def work() -> None:
        plug = await TapNetwork().plug(NIC, 12345)
        for uid, allowed in ((12345, True), (12346, False)):
            child = os.fork()
            if child == 0:
                handle = os.open("/dev/net/tun", os.O_RDWR)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                try:
                    flags = tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR
                    fcntl.ioctl(handle, tap.TUNSETIFF, struct.pack("16sH22x", plug.tap.encode(), flags))
                except PermissionError:
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert (os.waitstatus_to_exitcode(status) == 0) is allowed

    inside(work)


def test_a_closed_or_missing_device_is_told_with_its_remedy() -> None:
    async def work() -> None:
        tun = Path("/dev/net/tun")
        tun.chmod(0o600)
        with pytest.raises(Unsupported) as closed:
            await TapNetwork().plug(NIC, 12345)
        assert closed.value.reasons[0].remedy == "chmod 666 /dev/net/tun"
        await TapNetwork().plug(NIC, None)  # the agent itself may
        tun.unlink()
        with pytest.raises(Unsupported) as missing:
            await TapNetwork().plug(NIC, None)
        assert missing.value.reasons[0].code == "tun.missing"

    inside(work)


def test_without_its_bridge_there_is_a_remedy_and_no_tap() -> None:
    async def work() -> None:
        lost = Nic(id=NIC.id, mac=NIC.mac, network=NetworkKind.BRIDGE, bridge="br9")
        with pytest.raises(Unsupported) as refused:
            await TapNetwork().plug(lost, None)
        assert refused.value.reasons[0].remedy == "ip link add br9 type bridge"
        assert "br0" in refused.value.reasons[0].message
        assert not Path("/sys/class/net", tap_name(NIC.id)).exists()
        assert await bridges() == ("br0",)

    inside(work)


def test_a_tap_that_cannot_join_is_taken_away_again() -> None:
    async def work() -> None:
        async def gone(kernel: Any, name: str, bridge: Any) -> None:
            raise NetlinkError(19, "the bridge went between looking and joining")

        tap.attach = gone
        with pytest.raises(Unsupported):
            await TapNetwork().plug(NIC, None)
        assert not Path("/sys/class/net", tap_name(NIC.id)).exists()

    inside(work)


@pytest.mark.parametrize("bridge", ["", "../../etc", "br0 up", "a" * 16, "-x", "br0\n", "br\0"])
def test_no_strange_name_reaches_the_kernel(bridge: str) -> None:
    strange = Nic(id=NIC.id, mac=NIC.mac, network=NetworkKind.BRIDGE, bridge=bridge)
    with pytest.raises(InvalidInput):
        asyncio.run(TapNetwork().plug(strange, None))


def test_names_fit_the_kernel_and_differ() -> None:
    names = {tap_name(f"nic-{number}") for number in range(1000)}
    assert len(names) == 1000
    assert {len(name) for name in names} == {12}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = set(Path("/sys/class/net").iterdir())
    yield
    assert set(Path("/sys/class/net").iterdir()) == before
