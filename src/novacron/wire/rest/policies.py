"""Migration policies on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from novacron.wire.rest.common import Description, Labels, Name, Strict, example
from novacron.wire.rest.migrations import Goals

_GOALS = {"max_downtime_ms": 50, "never_postcopy": True}


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
ClockTime = Annotated[str, StringConstraints(pattern=r"^(?:[01][0-9]|2[0-3]):[0-5][0-9]$")]
TimeZone = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}$")]


class Window(Strict):
    """When migrations may begin, each week: on these days from `begins` to `ends`, by the clocks of that time zone.

    ends not after begins: on the day after. What has begun goes on after the end.
    """

    days: Annotated[list[Day], Field(min_length=1, max_length=7)]
    begins: ClockTime
    ends: ClockTime
    timezone: TimeZone = "UTC"


Windows = Annotated[list[Window], Field(max_length=14)]


class PolicyCreate(Strict):
    """Goals under a name, and when migrations may begin (windows; none: at any time). They count for VMs with all
    labels of `selector` (an empty value: any value), for migrations that name the policy, and, if it is the default,
    for all others. At most one is the default.
    """

    name: Name
    goals: Goals
    selector: Labels = {}
    is_default: bool = False
    windows: Windows = []
    labels: Labels = {}
    description: Description = ""

    model_config = Strict.model_config | example({"name": "database", "goals": _GOALS, "selector": {"tier": "db"}})


class PolicyUpdate(Strict):
    """What may be changed; a field left out stays as it is. goals, windows, selector, labels: all of them."""

    name: Name | None = None
    goals: Goals | None = None
    selector: Labels | None = None
    is_default: bool | None = None
    windows: Windows | None = None
    labels: Labels | None = None
    description: Description | None = None

    model_config = Strict.model_config | example({"goals": _GOALS})


class Policy(Strict):
    id: str
    name: str
    goals: Goals
    selector: dict[str, str]
    is_default: bool
    windows: Windows
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
            "windows": [{"days": ["sat", "sun"], "begins": "22:00", "ends": "05:00", "timezone": "Europe/Berlin"}],
            "labels": {},
            "description": "",
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:00:00Z",
            "revision": 9,
        }
    )
