"""Networks on the wire."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from novacron.model.network import Addressing, NetworkMode
from novacron.wire.rest.common import Description, Labels, Name, Strict, example

MAX_VNI = (1 << 24) - 1
MIN_MTU_IPV6 = 1280


def address_text(text: str) -> str:
    """An IP address in its one short form; empty stays empty. :raise ValueError: it is none."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError as wrong:
        raise ValueError("is not an IP address") from wrong


def cidr_text(text: str) -> str:
    """A subnet with its prefix length, in its one short form; empty stays empty. :raise ValueError: it is none."""
    try:
        return str(ipaddress.ip_network(text)) if text else ""
    except ValueError as wrong:
        said = "has host bits set" if "host bits" in str(wrong) else "is not a subnet such as 10.20.0.0/24"
        raise ValueError(said) from wrong


Address = Annotated[
    str, StringConstraints(max_length=45, pattern=r"^[0-9a-fA-F:.]{2,45}$"), AfterValidator(address_text)
]
Subnet4 = Annotated[
    str, StringConstraints(max_length=18, pattern=r"^([0-9.]{7,15}/[0-9]{1,2})?$"), AfterValidator(cidr_text)
]
Subnet6 = Annotated[
    str, StringConstraints(max_length=49, pattern=r"^([0-9a-fA-F:.]{2,45}/[0-9]{1,3})?$"), AfterValidator(cidr_text)
]
Resolvers = Annotated[list[Address], Field(max_length=4)]


class NetworkCreate(Strict):
    """A network that spans the nodes. The first address of each subnet is its gateway's.

    vni: its VXLAN number; null: chosen. mtu: of the guests' cards; the tunnel takes 50 bytes of the nodes' own.
    """

    name: Name
    description: Description = ""
    labels: Labels = {}
    ipv4: Subnet4 = ""
    ipv6: Subnet6 = ""
    mode: NetworkMode = NetworkMode.ISOLATED
    addressing: Addressing = Addressing.MANAGED
    mtu: Annotated[int, Field(ge=576, le=9166)] = 1450
    dns: Resolvers = []
    vni: Annotated[int, Field(ge=1, le=MAX_VNI)] | None = None

    model_config = Strict.model_config | example(
        {"name": "web", "ipv4": "10.20.0.0/24", "mode": "nat", "dns": ["9.9.9.9"], "labels": {"tier": "web"}}
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if not (self.ipv4 or self.ipv6) and self.addressing is not Addressing.NONE:
            raise ValueError("give ipv4, ipv6 or both; without a subnet addressing must be none")
        if not (self.ipv4 or self.ipv6) and self.mode is not NetworkMode.ISOLATED:
            raise ValueError("a network without a subnet has no gateway: its mode must be isolated")
        if self.ipv6 and self.mtu < MIN_MTU_IPV6:
            raise ValueError(f"mtu must be at least {MIN_MTU_IPV6} where there is IPv6")
        return self


class NetworkUpdate(Strict):
    """What may be changed; a field left out stays as it is. The subnets: only while no card is on it."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    dns: Resolvers | None = None
    mode: NetworkMode | None = None
    ipv4: Subnet4 | None = None
    ipv6: Subnet6 | None = None

    model_config = Strict.model_config | example({"mode": "nat", "dns": ["9.9.9.9", "149.112.112.112"]})


class Network(Strict):
    """A network. gateways: the first address of each subnet, the same on every node."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    vni: int
    ipv4: str
    ipv6: str
    gateways: list[str]
    mode: NetworkMode
    addressing: Addressing
    mtu: int
    dns: list[str]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000021",
            "name": "web",
            "description": "",
            "labels": {"tier": "web"},
            "vni": 4096,
            "ipv4": "10.20.0.0/24",
            "ipv6": "fd20::/64",
            "gateways": ["10.20.0.1", "fd20::1"],
            "mode": "nat",
            "addressing": "managed",
            "mtu": 1450,
            "dns": ["9.9.9.9"],
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:00:00Z",
            "revision": 7,
        }
    )
