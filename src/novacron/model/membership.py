"""Membership: the small record by which a node shows that it lives, and every change it allows. Pure.

                 beaten
                 ┌────┐
                 │    ▼
    joined ────▶  up ─────barred────▶ fencing ────fenced────▶ fenced ◀─┐ proven (while there was no proof)
                 ▲ └──left (nothing of it runs), proven (said)──▲ │ └───┘
                 └────────joined──────────┴────────joined─────────┘

Each function takes the record as it stands and answers what it is to be, written by compare-and-swap on the revision
read; None: the record does not stand as the caller believed, and nothing is written. `epoch` grows with every change
but a heartbeat, so whoever speaks of an older one is refused; `beats` grows with every change that lets the node run
machines, so whoever sees a number for the first time knows that the node has no time from a later one.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from novacron.errors import InvalidInput
from novacron.model.ha import FenceClass, Proof
from novacron.model.node import NodeState
from novacron.model.timing import MAX_TTL_S


class MemberState(StrEnum):
    """`up`: its heartbeats count. `fencing`: its epoch is barred, its machines may still run. `fenced`: they do not,
    as far as its fence class goes, or as `proof` says.
    """

    UP = "up"
    FENCING = "fencing"
    FENCED = "fenced"


class Pledge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agent says of its node with a join. servers: those it asks for time when the store is away."""

    boot_id: str
    fence_class: FenceClass
    ttl_s: float
    servers: tuple[str, ...]


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The record. id: the node's. ttl_s: counted by the agent from before it sent a heartbeat. reason: of the last
    change of state, for people. all_vms: its VMs without the policy may be started
    elsewhere, too.
    """

    id: str
    state: MemberState
    epoch: int
    beats: int
    ttl_s: float
    fence_class: FenceClass
    boot_id: str
    servers: tuple[str, ...] = ()
    proof: Proof = Proof.NONE
    reason: str = ""
    all_vms: bool = False


def joined(
    member: Membership | None, node_id: str, state: MemberState | None, epoch: int, pledge: Pledge
) -> Membership | None:
    """The node takes part (again) under a new epoch. state, epoch: of the record the agent has seen; None, 0: none.

    :raise InvalidInput: the pledge's ttl is out of bounds.
    """
    if not 0 < pledge.ttl_s <= MAX_TTL_S:
        raise InvalidInput.field("ttl_s", "is out of bounds", f"give more than 0 and at most {MAX_TTL_S:.0f} seconds")
    if (member.state if member else None, member.epoch if member else 0) != (state, epoch):
        return None
    return Membership(
        id=node_id,
        state=MemberState.UP,
        epoch=epoch + 1,
        beats=(member.beats if member else 0) + 1,
        ttl_s=pledge.ttl_s,
        fence_class=pledge.fence_class,
        boot_id=pledge.boot_id,
        servers=pledge.servers,
        reason="its agent joined",
    )


def beaten(member: Membership, epoch: int, beats: int, ttl_s: float) -> Membership | None:
    """A heartbeat. One that was overtaken by a later one counts no more: it might bring back an older ttl."""
    if member.state is not MemberState.UP or member.epoch != epoch or beats <= member.beats:
        return None
    return msgspec.structs.replace(member, beats=beats, ttl_s=ttl_s)


def barred(member: Membership, seen: Membership, reason: str) -> Membership | None:
    """No heartbeat of its epoch counts from here on. seen: the very record that was judged silent."""
    if member != seen or member.state is not MemberState.UP:
        return None
    return msgspec.structs.replace(member, state=MemberState.FENCING, epoch=member.epoch + 1, reason=reason)


def fenced(member: Membership, seen: Membership, proof: Proof, reason: str) -> Membership | None:
    """Its machines may be taken over. seen: the very record that was waited for."""
    if member != seen or member.state is not MemberState.FENCING:
        return None
    return msgspec.structs.replace(member, state=MemberState.FENCED, epoch=member.epoch + 1, proof=proof, reason=reason)


def proven(
    member: Membership, seen: Membership, proof: Proof, reason: str, *, all_vms: bool = False
) -> Membership | None:
    """Nothing of it runs, and that was seen (or a person vouches for it), not waited for: more than `fenced` can say.

    seen: the very record that stood before its power was looked at, or before it was judged silent: a node that has
    joined or beaten since is not meant. A node whose heartbeats count is taken for off at a person's word alone.
    """
    sayable = member.state is not MemberState.UP or proof is Proof.OPERATOR
    if member != seen or member.proof is not Proof.NONE or not sayable:
        return None
    return msgspec.structs.replace(
        member, state=MemberState.FENCED, epoch=member.epoch + 1, proof=proof, reason=reason, all_vms=all_vms
    )


def widened(member: Membership, seen: Membership) -> Membership | None:
    """Its VMs without the policy may be started elsewhere, too: somebody asked for it, and that nothing of it runs is
    proven.
    """
    if member != seen or member.proof is Proof.NONE:
        return None
    return msgspec.structs.replace(member, epoch=member.epoch + 1, all_vms=True)


def left(member: Membership, state: MemberState, epoch: int) -> Membership | None:
    """Its agent has ended every machine and seen it. state, epoch: of the record that the agent has seen."""
    if (member.state, member.epoch) != (state, epoch) or state is MemberState.FENCED:
        return None
    reason = "its agent ended all its machines and left"
    return msgspec.structs.replace(member, state=MemberState.FENCED, epoch=epoch + 1, proof=Proof.AGENT, reason=reason)


def withdrawn(member: Membership) -> Membership | None:
    """Its agent is of an older version by now, which guards nothing and heartbeats nowhere: its VMs stay its own."""
    if member.fence_class is FenceClass.NONE and member.state is MemberState.UP:
        return None
    reason = "its agent takes no part in memberships"
    return msgspec.structs.replace(
        member,
        state=MemberState.UP,
        epoch=member.epoch + 1,
        fence_class=FenceClass.NONE,
        proof=Proof.NONE,
        reason=reason,
        all_vms=False,
    )


def takes_machines(member: Membership | None) -> bool:
    """Whether the node may be handed a VM: under an epoch that is barred it could not begin there, and what its memory
    held would be lost. None: the node takes no part in memberships.
    """
    return member is None or member.state is MemberState.UP


def state_of(
    member: Membership | None,
    *,
    silent: bool = False,
    barrable: bool = True,
    cordoned: bool = False,
    draining: bool = False,
) -> NodeState:
    """The word people see. silent: for as long as makes it suspect; barrable: its silence leads to a fence."""
    if member is None:
        return NodeState.JOINING
    if member.state is not MemberState.UP:
        return NodeState.FENCING if member.state is MemberState.FENCING else NodeState.FENCED
    if silent:
        return NodeState.SUSPECT if barrable else NodeState.DOWN
    if draining:
        return NodeState.DRAINING
    return NodeState.CORDONED if cordoned else NodeState.UP
