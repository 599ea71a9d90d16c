"""Networks and security groups as the API shows them: the shapes of wire.rest."""

from __future__ import annotations

from typing import Any

from novacron.control.encoded import Encoded
from novacron.control.networks.cards import gateways_of
from novacron.control.store.kinds import NETWORKS, SECURITY_GROUPS
from novacron.control.store.records import Records
from novacron.model.network import Network, Rule, SecurityGroup


class NetworkView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, NETWORKS, self.data)

    def data(self, network: Network, revision: int) -> dict[str, Any]:
        spec = network.spec
        return {
            "id": network.id,
            "name": network.name,
            "description": network.description,
            "labels": network.labels,
            "vni": spec.vni,
            "ipv4": spec.ipv4,
            "ipv6": spec.ipv6,
            "gateways": gateways_of(network),
            "mode": spec.mode,
            "addressing": spec.addressing,
            "mtu": spec.mtu,
            "dns": spec.dns,
            "created_at": network.created_at,
            "updated_at": network.updated_at,
            "revision": revision,
        }


class GroupView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, SECURITY_GROUPS, self.data)

    def data(self, group: SecurityGroup, revision: int) -> dict[str, Any]:
        return {
            "id": group.id,
            "name": group.name,
            "description": group.description,
            "labels": group.labels,
            "rules": [_rule(rule) for rule in group.rules],
            "created_at": group.created_at,
            "updated_at": group.updated_at,
            "revision": revision,
        }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "direction": rule.direction,
        "protocol": rule.protocol,
        "port_first": rule.port_first,
        "port_last": rule.port_last,
        "cidr": rule.cidr,
        "group": rule.group_id or None,
    }
