"""Calls about fencing: how a node's power is reached, a person's word that it is off, and what HA could do now."""

from __future__ import annotations

import datetime

import msgspec

from novacron.client.call import Call, path_of, ref_of
from novacron.client.migrations import Reason


class FenceDeviceSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """kind: redfish (address https://host[:port]) or ipmi (host[:port]). password: kept sealed, shown nowhere.

    fingerprint: SHA-256 of the certificate the BMC shows; empty: of a CA that the server trusts.
    """

    kind: str
    address: str
    user: str
    password: str
    system: str = ""
    fingerprint: str = ""

    def __repr__(self) -> str:
        return f"FenceDeviceSet(kind={self.kind!r}, address={self.address!r}, user={self.user!r})"


class FenceDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A node's fence device, without its password."""

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


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What it says of the node's power: on, off, changing or unknown. problem: why that cannot be the node's."""

    node: str
    node_id: str
    power: str
    problem: Reason | None


class ConfirmOff(msgspec.Struct, frozen=True, kw_only=True):
    """with_unprotected: also VMs without the policy are started elsewhere."""

    with_unprotected: bool = False


class ConfirmedOff(msgspec.Struct, frozen=True, kw_only=True):
    """What vouches for a node being off."""

    node: str
    node_id: str
    proof: str
    reason: str
    with_unprotected: bool


class HoldCreate(msgspec.Struct, frozen=True, kw_only=True):
    for_s: float


class OnHold(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is left alone for so long."""

    node: str
    node_id: str
    for_s: float


class HaNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node as HA sees it. stranded: VMs that no other node could take now; unguaranteed: those that ask for a surer
    fence class than it has.
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


class HaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What high availability could do this moment. brake: why no node would be fenced."""

    brake: Reason | None
    recent_fences: int
    fence_limit: int
    fence_window_s: float
    by_fence_class: dict[str, int]
    survives_any_node: bool
    nodes: list[HaNode]


def status() -> Call[HaStatus]:
    """Fence classes, brakes, and whom the loss of each node would strand."""
    return Call(method="GET", path=path_of("ha"), answer=HaStatus)


def confirm_off(ref: str, *, with_unprotected: bool = False) -> Call[ConfirmedOff]:
    """Say that a silent node is off. If it is not, its VMs run twice."""
    body = ConfirmOff(with_unprotected=with_unprotected)
    return Call(method="POST", path=_of(ref, "confirm-off"), answer=ConfirmedOff, body=body)


def hold(ref: str, for_s: float) -> Call[OnHold]:
    """Leave a node alone for a while, as its agent is to be away; it may go once this is answered."""
    return Call(method="POST", path=_of(ref, "hold"), answer=OnHold, body=HoldCreate(for_s=for_s))


def device(ref: str) -> Call[FenceDevice]:
    """How a node's power is reached."""
    return Call(method="GET", path=_of(ref, "fence-device"), answer=FenceDevice)


def set_device(ref: str, wish: FenceDeviceSet, *, revision: int | None = None) -> Call[FenceDevice]:
    """Say how it is reached, in place of what was said before; with `revision`, only of that one."""
    return Call(method="PUT", path=_of(ref, "fence-device"), answer=FenceDevice, body=wish, revision=revision)


def remove_device(ref: str, *, revision: int | None = None) -> Call[None]:
    """Reach it no more."""
    return Call(method="DELETE", path=_of(ref, "fence-device"), answer=type(None), revision=revision)


def power(ref: str) -> Call[Reading]:
    """Read the state of its power. Nothing is switched."""
    return Call(method="GET", path=_of(ref, "fence-device/power"), answer=Reading)


def _of(ref: str, verb: str) -> str:
    return path_of("nodes", ref_of("node", ref), verb)
