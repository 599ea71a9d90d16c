"""High availability on the wire: what becomes of a VM when its node fails."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from novacron.model.ha import HaPolicy
from novacron.wire.rest.common import Strict, example

FenceClassName = Literal["agent", "timer", "watchdog", "bmc"]


class Ha(Strict):
    """policy: restart: it has a deadline on its node, and is started elsewhere once its node is fenced; none: it has
    none, and nobody but a person starts it elsewhere. A machine that runs keeps what it was started with.

    min_fence_class: how surely a node must end its machines for it to be restarted from there. priority: more goes
    first.
    """

    policy: HaPolicy = HaPolicy.NONE
    min_fence_class: FenceClassName = "watchdog"
    priority: Annotated[int, Field(ge=0, le=100)] = 50

    model_config = Strict.model_config | example({"policy": "restart", "min_fence_class": "timer", "priority": 80})
