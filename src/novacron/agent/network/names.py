"""What a network's parts are called on every node, within the kernel's 15 characters, and their hardware addresses."""

from __future__ import annotations

import hashlib

from novacron.model.network import Addressing, NetworkMode, NetworkSpec

BRIDGES, TUNNELS, TAPS = "ncb-", "ncx-", "nct-"
VXLAN_PORT = 4789


def bridge_name(network_id: str) -> str:
    return BRIDGES + _digest(network_id)


def tunnel_name(network_id: str) -> str:
    return TUNNELS + _digest(network_id)


def overlay_tap(nic_id: str) -> str:
    """Another name than a tap on a node's own bridge has: what is called so is dropped until its filter is there."""
    return TAPS + _digest(nic_id)


def gateway_mac(network_id: str) -> str:
    """The bridge's own, the same on every node, so that a machine finds its gateway where it arrives."""
    return _mac(f"gateway {network_id}")


def probe_mac(network_id: str, endpoint: str) -> str:
    """Under which a node asks for an address: unlike the gateway's, so that the answer finds back to it."""
    return _mac(f"probe {network_id} {endpoint}")


def has_gateway(spec: NetworkSpec) -> bool:
    """Whether the first address of each subnet is on every node's bridge: to route, or to answer DHCP from."""
    return spec.mode is not NetworkMode.ISOLATED or spec.addressing is Addressing.MANAGED


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _mac(text: str) -> str:
    digits = hashlib.sha256(text.encode()).hexdigest()
    return "02:4e:" + ":".join(digits[at : at + 2] for at in range(0, 8, 2))
