"""A migration policy: goals under a name, for the VMs that its labels select, for those who name it, or for all."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

import msgspec

from novacron.model.migration import Wishes

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Window(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When migrations may begin, each week: on these days from `begins` to `ends` (`22:00`), by that zone's clocks.

    ends not after begins: on the day after.
    """

    days: tuple[str, ...]
    begins: str
    ends: str
    timezone: str = "UTC"


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one policy.

    selector: it counts for VMs with all of these labels (an empty value: any value); empty: for none by itself.
    is_default: it counts for whatever nobody else has said; at most one is. windows: when migrations may begin; none:
    it says nothing of that.
    """

    id: str
    name: str
    goals: Wishes
    created_at: datetime.datetime
    updated_at: datetime.datetime
    selector: dict[str, str] = {}
    is_default: bool = False
    windows: tuple[Window, ...] = ()
    labels: dict[str, str] = {}
    description: str = ""


def selects(policy: Policy, labels: Mapping[str, str]) -> bool:
    """Whether a VM with these labels is one of its own."""
    return bool(policy.selector) and all(
        key in labels and value in ("", labels[key]) for key, value in policy.selector.items()
    )


def selected(policies: Iterable[Policy], labels: Mapping[str, str]) -> Policy | None:
    """The one that says most exactly which VMs it is for: most labels, most values among them; then by name."""
    fitting = [policy for policy in policies if selects(policy, labels)]
    exactness = {one.id: (-len(one.selector), -sum(map(bool, one.selector.values())), one.name) for one in fitting}
    return min(fitting, key=lambda one: exactness[one.id], default=None)


def default_of(policies: Iterable[Policy]) -> Policy | None:
    """The cluster's default, if there is one."""
    return next((policy for policy in policies if policy.is_default), None)
