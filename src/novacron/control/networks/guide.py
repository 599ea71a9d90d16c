"""The network-config a guest reads through cloud-init when its owner gave none: pure.

Netplan's version 2, written as JSON, which is YAML too and quotes what it must.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from novacron.control.networks.cards import gateway_of, subnets_of
from novacron.model.machine import CloudInit, NetworkKind, Nic
from novacron.model.network import Addressing, Network, NetworkMode

_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def guided(cloud_init: CloudInit | None, nics: Sequence[Nic], networks: Mapping[str, Network]) -> CloudInit | None:
    """What the guest is given to read: as its owner wished, completed by its cards' configuration.

    A seed that nobody asked for is made only where a guest could not learn its addresses otherwise (static).
    """
    known = [networks[nic.network_id].spec.addressing for nic in nics if nic.network_id in networks]
    if not known or (cloud_init is not None and cloud_init.network_config):
        return cloud_init
    if cloud_init is None and Addressing.STATIC not in known:
        return None
    return msgspec.structs.replace(cloud_init or CloudInit(), network_config=network_config(nics, networks))


def network_config(nics: Sequence[Nic], networks: Mapping[str, Network]) -> str:
    """All the cards, found by their MAC."""
    cards = {f"nic{number}": _card(nic, networks.get(nic.network_id)) for number, nic in enumerate(nics)}
    text = msgspec.json.format(msgspec.json.encode({"version": 2, "ethernets": cards}), indent=2)
    return text.decode() + "\n"


def _card(nic: Nic, network: Network | None) -> dict[str, Any]:
    found: dict[str, Any] = {"match": {"macaddress": nic.mac}}
    if network is None or nic.network is not NetworkKind.OVERLAY:
        return found | {"dhcp4": True, "optional": True}
    found["mtu"] = network.spec.mtu
    if network.spec.addressing is Addressing.STATIC:
        return found | _static(nic, network)
    if network.spec.addressing is Addressing.NONE:
        return found | {"dhcp4": True, "optional": True}
    return found | {"dhcp4": bool(network.spec.ipv4), "dhcp6": bool(network.spec.ipv6)}


def _static(nic: Nic, network: Network) -> dict[str, Any]:
    subnets = {subnet.version: subnet for subnet in subnets_of(network.spec)}
    versions = [ipaddress.ip_address(text).version for text in nic.addresses]
    pairs = zip(nic.addresses, versions, strict=True)
    found: dict[str, Any] = {"addresses": [f"{text}/{subnets[version].prefixlen}" for text, version in pairs]}
    if network.spec.mode is not NetworkMode.ISOLATED:
        found["routes"] = [{"to": _ANYWHERE[one], "via": gateway_of(subnets[one])} for one in versions]
    if network.spec.dns:
        found["nameservers"] = {"addresses": list(network.spec.dns)}
    return found
