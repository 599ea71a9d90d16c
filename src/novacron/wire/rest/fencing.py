"""Fencing on the wire: how a node's power is reached, a person's word that it is off, and what HA could do now."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from novacron.model.fence_device import Power
from novacron.model.timing import MAX_TTL_S
from novacron.wire.rest.common import ReasonOut, Strict, example

KindName = Literal["redfish", "ipmi"]


class FenceDeviceSet(Strict):
    """How a node's power is reached from outside. password: kept sealed, and shown nowhere.

    system: of redfish: the path of the system that is the node; needed only where the BMC has several.
    fingerprint: of redfish: SHA-256 of the certificate the BMC shows; empty: a CA that the server trusts signed it.
    """

    kind: KindName
    address: Annotated[str, Field(max_length=280)]
    user: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-9;-~]+$")]
    password: Annotated[SecretStr, Field(min_length=1, max_length=256)]
    system: Annotated[str, Field(max_length=256)] = ""
    fingerprint: Annotated[str, Field(max_length=95)] = ""

    model_config = Strict.model_config | example(
        {"kind": "redfish", "address": "https://bmc-1.example", "user": "novacron", "password": "…"}
    )


class FenceDevice(Strict):
    """A node's fence device; its password is not shown."""

    node: str
    node_id: str
    kind: str
    address: str
    user: str
    system: str
    fingerprint: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


class FenceDeviceReading(Strict):
    """What the device says of the node's power. problem: why that cannot be the node's."""

    node: str
    node_id: str
    power: Power
    problem: ReasonOut | None


class ConfirmOff(Strict):
    """with_unprotected: also VMs without the policy `restart` are started elsewhere."""

    with_unprotected: bool = False


class ConfirmedOff(Strict):
    """From here on what ran there may be started elsewhere. proof: what vouches for it being off."""

    node: str
    node_id: str
    proof: str
    reason: str
    with_unprotected: bool


class HoldCreate(Strict):
    """for_s: no less than what heartbeats ask for anyway."""

    for_s: Annotated[float, Field(gt=0, le=MAX_TTL_S)]


class OnHold(Strict):
    """From here on the node is silent for so long before it is suspect, and its guarded VMs have as much time."""

    node: str
    node_id: str
    for_s: float


class HaNode(Strict):
    """A node as HA sees it. fence_device: how its power is reached; null: it is not.

    guarded: VMs with the policy that are to run and belong to it. stranded: those of them that no other node could
    take now, each placed after those of more priority. unguaranteed: those that ask for a surer fence class than the
    node has, and whose node's power is not reached either.
    """

    node: str
    node_id: str
    state: str
    fence_class: str | None
    fence_device: str | None
    proof: str | None
    guarded: int
    stranded: list[str]
    unguaranteed: list[str]


class HaStatus(Strict):
    """What high availability could do this moment.

    brake: why no node would be fenced; null: nothing. recent_fences, fence_limit: in the last fence_window_s.
    by_fence_class: how many nodes vouch by what. survives_any_node: whichever node fails, its guarded VMs can be
    restarted elsewhere.
    """

    brake: ReasonOut | None
    recent_fences: int
    fence_limit: int
    fence_window_s: float
    by_fence_class: dict[str, int]
    survives_any_node: bool
    nodes: list[HaNode]
