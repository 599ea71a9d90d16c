"""What the balancer is told: whether it may move VMs, and how sure it has to be before it does."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

BALANCER = "balancer"
"""The id of the one record, and who asks for the migrations it begins."""

BALANCER_LABEL = "novacron.io/balancer"
"""On each migration that the balancer began: why (`Why`). On a VM, with the value `never`: it is left alone."""

NEVER = "never"


class Mode(StrEnum):
    """off: nothing is reckoned; propose: moves are shown; act: they are begun, too."""

    OFF = "off"
    PROPOSE = "propose"
    ACT = "act"


class Why(StrEnum):
    """What a move is for, the most pressing first."""

    HARD_RULE = "hard_rule"
    SOFT_RULE = "soft_rule"
    LOAD = "load"


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record.

    margin: how far apart two nodes must be used, as a share of what they have, before a VM goes from one to the other,
    and by which share of its soft rules a VM must be better off. pays_within_s: a move may take as long, less where it
    helps only in part. cool_down_s: for which a VM that was moved is left alone; node_cool_down_s: the same of a node
    that a move for load began or ended at. max_moves: of its own at once. window_s: over which loads are smoothed.
    """

    id: str = BALANCER
    mode: Mode = Mode.OFF
    margin: float = 0.1
    pays_within_s: float = 900.0
    cool_down_s: float = 3600.0
    node_cool_down_s: float = 600.0
    max_moves: int = 2
    window_s: float = 300.0
    updated_at: datetime.datetime | None = None
