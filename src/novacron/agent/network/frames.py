"""Ethernet frames that say or ask where an address is: ARP, RARP, neighbour discovery. Pure."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

from novacron.agent.network.subnets import Address, link_local

BROADCAST = "ff:ff:ff:ff:ff:ff"
_ARP, _RARP, _IPV6, _ICMPV6 = 0x0806, 0x8035, 0x86DD, 58
_REQUEST, _REPLY, _REVERSE = 1, 2, 3
_SOLICIT, _ADVERTISE = 135, 136
_OVERRIDE = 0x20000000
_ALL_NODES = ipaddress.IPv6Address("ff02::1")
_NOBODY4 = ipaddress.IPv4Address(0)
_NOBODY6 = ipaddress.IPv6Address(0)


def announcements(mac: str, addresses: Iterable[Address]) -> list[bytes]:
    """Everything a card says when it has come to another place."""
    frames = [_arp(_RARP, _REVERSE, mac, _NOBODY4, mac, _NOBODY4)]
    for one in addresses:
        if isinstance(one, ipaddress.IPv4Address):
            frames += [_arp(_ARP, _REQUEST, mac, one, "00:00:00:00:00:00", one), _arp(_ARP, _REPLY, mac, one, mac, one)]
        else:
            frames.append(_neighbour(_ADVERTISE, mac, one, one, _ALL_NODES, _OVERRIDE))
    frames.append(_neighbour(_ADVERTISE, mac, *(link_local(mac),) * 2, _ALL_NODES, _OVERRIDE))
    return frames


def question(mac: str, address: Address) -> bytes:
    """Who has this address? Asked by nobody in particular, so that nobody takes the asker for an address."""
    if isinstance(address, ipaddress.IPv4Address):
        return _arp(_ARP, _REQUEST, mac, _NOBODY4, "00:00:00:00:00:00", address)
    group = ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[-3:])
    return _neighbour(_SOLICIT, mac, address, _NOBODY6, group, 0)


def answers(frame: bytes, address: Address) -> bool:
    """Whether a frame says who has this address."""
    kind = frame[12:14]
    if address.version == 4:
        return kind == _ARP.to_bytes(2, "big") and frame[20:22] == b"\0\2" and frame[28:32] == address.packed
    advertised = kind == _IPV6.to_bytes(2, "big") and frame[20:21] == b"\x3a" and frame[54:55] == b"\x88"
    return advertised and frame[62:78] == address.packed


def _arp(kind: int, operation: int, mac: str, sender: Address, target_mac: str, target: Address) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return _ethernet(BROADCAST, mac, kind) + body + _octets(mac) + sender.packed + _octets(target_mac) + target.packed


def _neighbour(kind: int, mac: str, target: Address, sender: Address, receiver: Address, flags: int) -> bytes:
    option = b"" if sender == _NOBODY6 else bytes([2 if kind == _ADVERTISE else 1, 1]) + _octets(mac)
    unsummed = struct.pack("!BBHI", kind, 0, 0, flags) + target.packed + option
    pseudo = sender.packed + receiver.packed + struct.pack("!II", len(unsummed), _ICMPV6)
    summed = unsummed[:2] + struct.pack("!H", checksum(pseudo + unsummed)) + unsummed[4:]
    header = struct.pack("!IHBB", 6 << 28, len(summed), _ICMPV6, 255) + sender.packed + receiver.packed
    group = "33:33:" + ":".join(f"{octet:02x}" for octet in receiver.packed[-4:])
    return _ethernet(group, mac, _IPV6) + header + summed


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(receiver: str, sender: str, kind: int) -> bytes:
    return _octets(receiver) + _octets(sender) + kind.to_bytes(2, "big")


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
