"""High availability: what may be restarted elsewhere, how surely a node ends its machines, and which were fenced. Pure.

Fence classes are declared by nodes and believed: each says by what a machine is dead `kill_s` after its deadline.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec


class FenceClass(IntEnum):
    """By what a node's machines end at their deadline, from the least to the surest."""

    NONE = 0
    AGENT = 1  # the agent kills them, if it lives then
    TIMER = 2  # a kernel timer kills them whoever is stopped, but not while the host itself stands still
    WATCHDOG = 3  # as TIMER, and a watchdog resets the host when that has not worked, or the host stands still
    BMC = 4  # as WATCHDOG, and the power can be switched off, and seen to be off, from outside


class Proof(StrEnum):
    """Why nothing of a fenced node runs, beside time: empty where time is all there is."""

    NONE = ""
    AGENT = "agent"  # its agent ended every machine, saw it, and said so
    POWER = "power"  # its power was seen to be off
    OPERATOR = "operator"  # a person said that it is off


class HaPolicy(StrEnum):
    """`restart`: it has a deadline, and is started elsewhere once its node is fenced. `none`: no deadline ends it, and
    nobody but a person starts it elsewhere.
    """

    NONE = "none"
    RESTART = "restart"


class HaAdmission(StrEnum):
    """What becomes of a request after which not every node could be lost: it is done and warned of, or refused."""

    WARN = "warn"
    REFUSE = "refuse"


class Protection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a VM's owner wants of HA. min_class: of nodes it may be restarted from. priority: more goes first."""

    policy: HaPolicy = HaPolicy.NONE
    min_class: FenceClass = FenceClass.WATCHDOG
    priority: int = 50


def is_guarded(protection: Protection, fence_class: FenceClass) -> bool:
    """Whether its machine has a deadline on a node of that class, and so ends for certain when the node falls silent.

    Where it could not be restarted elsewhere anyway, a deadline would only take it away.
    """
    return protection.policy is HaPolicy.RESTART and fence_class >= max(protection.min_class, FenceClass.AGENT)


class Fenced(msgspec.Struct, frozen=True, kw_only=True):
    """One fence: the bar of a node's epoch, with its reason for people. number: grows by one each."""

    number: int
    node_id: str
    epoch: int
    reason: str


class FenceLog(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of the fences that count for the limit: written in the same transaction as each bar.

    An entry is taken out by a server that has seen it for the whole window by its own clock, so that neither a wall
    clock nor a server's restart lets more through.
    """

    id: str = "fences"
    last_number: int = 0
    recent: tuple[Fenced, ...] = ()


def noted(log: FenceLog, node_id: str, epoch: int, reason: str, limit: int) -> FenceLog | None:
    """The log with one fence more; None: there have been `limit` of late."""
    if len(log.recent) >= limit:
        return None
    number = log.last_number + 1
    entry = Fenced(number=number, node_id=node_id, epoch=epoch, reason=reason)
    return msgspec.structs.replace(log, last_number=number, recent=(*log.recent, entry))


def forgotten(log: FenceLog, numbers: frozenset[int]) -> FenceLog | None:
    """The log without those; None: it holds none of them."""
    left = tuple(one for one in log.recent if one.number not in numbers)
    return None if len(left) == len(log.recent) else msgspec.structs.replace(log, recent=left)
