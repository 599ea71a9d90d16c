"""Security groups on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from novacron.model.network import Direction, Protocol
from novacron.wire.rest.common import Description, Labels, Name, Ref, Strict, example
from novacron.wire.rest.networks import cidr_text

Cidr = Annotated[
    str, StringConstraints(max_length=49, pattern=r"^([0-9a-fA-F:.]{2,45}/[0-9]{1,3})?$"), AfterValidator(cidr_text)
]
PortNumber = Annotated[int, Field(ge=0, le=65535)]


class Rule(Strict):
    """What may begin a conversation; answers pass by themselves.

    Ports go with tcp and udp: both 0: any; port_last 0: port_first alone. The peer is in `cidr`, or has a card in
    `group` (id or name; the id in answers); neither: anybody.
    """

    direction: Direction
    protocol: Protocol = Protocol.ANY
    port_first: PortNumber = 0
    port_last: PortNumber = 0
    cidr: Cidr = ""
    group: Ref | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.port_first or self.port_last) and self.protocol not in (Protocol.TCP, Protocol.UDP):
            raise ValueError("ports go with protocol tcp or udp")
        if self.port_last and not self.port_first <= self.port_last:
            raise ValueError("port_last is below port_first")
        if self.port_last and not self.port_first:
            raise ValueError("port_first is missing")
        if self.cidr and self.group:
            raise ValueError("cidr and group are two ways to name the peer: give one")
        return self


Rules = Annotated[list[Rule], Field(max_length=100)]
_RULE = {"direction": "in", "protocol": "tcp", "port_first": 443, "port_last": 443, "cidr": "", "group": None}


class SecurityGroupCreate(Strict):
    """A group of rules. A card in one or more groups lets pass what any of their rules allows, and nothing else."""

    name: Name
    description: Description = ""
    labels: Labels = {}
    rules: Rules = []

    model_config = Strict.model_config | example(
        {
            "name": "web",
            "rules": [
                {"direction": "in", "protocol": "tcp", "port_first": 443},
                {"direction": "in", "protocol": "tcp", "port_first": 22, "cidr": "192.0.2.0/24"},
                {"direction": "out"},
            ],
        }
    )


class SecurityGroupUpdate(Strict):
    """What may be changed; a field left out stays as it is. rules: all of them. They count at once, also for answers.

    To add one rule: read the group, send all its rules and the new one, with If-Match.
    """

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    rules: Rules | None = None

    model_config = Strict.model_config | example({"rules": [_RULE, {"direction": "out"}]})


class SecurityGroup(Strict):
    id: str
    name: str
    description: str
    labels: dict[str, str]
    rules: list[Rule]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000031",
            "name": "web",
            "description": "",
            "labels": {},
            "rules": [_RULE],
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:00:00Z",
            "revision": 8,
        }
    )
