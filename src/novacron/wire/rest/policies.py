"""Migration policies on the wire."""

from __future__ import annotations

import datetime

from novacron.wire.rest.common import Description, Labels, Name, Strict, example
from novacron.wire.rest.migrations import Goals

_GOALS = {"max_downtime_ms": 50, "never_postcopy": True}


class PolicyCreate(Strict):
    """Goals under a name. They count for VMs with all labels of `selector` (an empty value: any value), for migrations
    that name the policy, and, if it is the default, for all others. At most one is the default.
    """

    name: Name
    goals: Goals
    selector: Labels = {}
    is_default: bool = False
    labels: Labels = {}
    description: Description = ""

    model_config = Strict.model_config | example({"name": "database", "goals": _GOALS, "selector": {"tier": "db"}})


class PolicyUpdate(Strict):
    """What may be changed; a field left out stays as it is. goals, selector, labels: all of them."""

    name: Name | None = None
    goals: Goals | None = None
    selector: Labels | None = None
    is_default: bool | None = None
    labels: Labels | None = None
    description: Description | None = None

    model_config = Strict.model_config | example({"goals": _GOALS})


class Policy(Strict):
    id: str
    name: str
    goals: Goals
    selector: dict[str, str]
    is_default: bool
    labels: dict[str, str]
    description: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000041",
            "name": "database",
            "goals": _GOALS,
            "selector": {"tier": "db"},
            "is_default": False,
            "labels": {},
            "description": "",
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:00:00Z",
            "revision": 9,
        }
    )
