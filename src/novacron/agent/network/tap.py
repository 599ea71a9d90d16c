"""Bridged networks: a persistent tap on a bridge of the node, owned by the machine's own user."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novacron.agent.drivers.base import NicPlug
from novacron.agent.network.links import find
from novacron.agent.network.names import BRIDGES
from novacron.errors import InvalidInput, NovaCronError, Reason, Unsupported
from novacron.model.machine import Nic
from novacron.model.network import NetworkSpec

TUN = Path("/dev/net/tun")
IPV6_CONF = Path("/proc/sys/net/ipv6/conf")

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}\Z")


def tap_name(nic_id: str) -> str:
    """The tap of a card: the same on every node and after every restart, within the kernel's 15 characters."""
    return "nc" + hashlib.sha256(nic_id.encode()).hexdigest()[:10]


class TapNetwork:
    """Makes and removes taps. Needs CAP_NET_ADMIN in the network namespace it runs in.

    Everything is asked of the kernel itself: /sys may show another network namespace than ours.
    """

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:  # noqa: ARG002
        """A tap that is up on the card's bridge, with the bridge's MTU. The host itself speaks no IPv6 on it.

        :raise InvalidInput: no name of a bridge.
        :raise Unsupported: no such bridge here, no /dev/net/tun, or no privilege. After a failure there is no tap,
        unless there was one before.
        """
        name = tap_name(nic.id)
        if _INTERFACE.match(nic.bridge) is None or nic.bridge.startswith(BRIDGES):
            raise InvalidInput.field("bridge", "is not the name of a bridge", "give an interface name of the node")
        check_door(uid)
        async with AsyncIPRoute() as kernel:
            bridge = await _bridge(kernel, nic.bridge)
            existed = await find(kernel, name) is not None
            try:
                await asyncio.to_thread(make_tap, name, uid)
                await attach(kernel, name, bridge)
            except BaseException as failed:
                if not existed:
                    await remove(kernel, name)
                if isinstance(failed, OSError | NetlinkError):
                    raise refusal(failed, nic.bridge) from failed
                raise
        return NicPlug(nic_id=nic.id, mac=nic.mac, tap=name)

    async def unplug(self, nic: Nic) -> None:
        async with AsyncIPRoute() as kernel:
            await remove(kernel, tap_name(nic.id))


def check_door(uid: int | None) -> None:
    """A machine with a user of its own opens its tap itself. The kernel lets it; the device file must, too."""
    try:
        mode = TUN.stat().st_mode
    except OSError as missing:
        raise Unsupported(
            f"this node has no {TUN}", [Reason("tun.missing", str(missing), str(TUN), "modprobe tun")]
        ) from missing
    if uid is not None and mode & 0o006 != 0o006:
        closed = "it is closed to unprivileged users, who may open only taps of their own through it"
        raise Unsupported(f"machines cannot open {TUN}", [Reason("tun.closed", closed, str(TUN), f"chmod 666 {TUN}")])


async def bridges() -> tuple[str, ...]:
    """Names of this node's bridges, but for those of networks that span nodes: these are not plugged into by name."""
    async with AsyncIPRoute() as kernel:
        return await _bridges(kernel)


async def _bridges(kernel: AsyncIPRoute) -> tuple[str, ...]:
    found = [link.get("ifname") async for link in await kernel.link("dump") if _is_bridge(link)]
    return tuple(sorted(name for name in found if not name.startswith(BRIDGES)))


def _is_bridge(link: Any) -> bool:
    return bool(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge")


async def _bridge(kernel: AsyncIPRoute, name: str) -> Any:
    found = await find(kernel, name)
    if found is None or not _is_bridge(found):
        there = ", ".join(await _bridges(kernel)) or "none"
        raise Unsupported(
            f"this node has no bridge {name!r}",
            [Reason("bridge.missing", f"its bridges: {there}", name, f"ip link add {name} type bridge")],
        )
    return found


async def attach(kernel: AsyncIPRoute, name: str, bridge: Any) -> None:
    no_ipv6 = IPV6_CONF / name / "disable_ipv6"
    if no_ipv6.exists():
        no_ipv6.write_text("1")
    link = await find(kernel, name)
    if link is None:
        raise OSError(errno.ENODEV, "it went away meanwhile", name)
    index, mtu = link["index"], bridge.get_attr("IFLA_MTU")
    await kernel.link("set", index=index, mtu=mtu, master=bridge["index"])
    await kernel.link("set", index=index, state="up")


async def remove(kernel: AsyncIPRoute, name: str) -> None:
    link = await find(kernel, name)
    if link is None:
        return
    try:
        await kernel.link("del", index=link["index"])
    except NetlinkError as refused:
        if refused.code != errno.ENODEV:
            raise NovaCronError(f"cannot remove the tap {name}: {refused}") from refused


def make_tap(name: str, uid: int | None) -> None:
    """Make it, or take it as it is; then set who may open it. Without an owner any may who has CAP_NET_ADMIN.

    One that a machine has open is its own already, and stays as it is.
    """
    handle = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        try:
            fcntl.ioctl(handle, TUNSETIFF, request)
        except OSError as refused:
            if refused.errno == errno.EBUSY:
                return
            raise
        fcntl.ioctl(handle, TUNSETOWNER, os.geteuid() if uid is None else uid)
        fcntl.ioctl(handle, TUNSETPERSIST, 1)
    finally:
        os.close(handle)


def refusal(failed: OSError | NetlinkError, bridge: str) -> Unsupported:
    return Unsupported(
        f"cannot make a tap on {bridge}: {failed}",
        [Reason("tap.refused", str(failed), bridge, "run the agent as root on a host with the tun module")],
    )
