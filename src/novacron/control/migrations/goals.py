"""Which goals a migration has, and who said so: the request, a policy named in it, one for its VM, the default. Pure.

Each goal is taken from the first of these that says it; what nobody has said is as `Goals` has it. A goal somebody has
said is kept to: a move that cannot keep to it is refused. One that is only usual is aimed at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from novacron.model.migration import Goals, Wishes
from novacron.model.policy import Policy, Window, default_of, selected

USUAL = "usual"
ASKED = "asked for"


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """The goals, and by field who said it, in words; a field nobody has said is not there. windows: when to begin."""

    goals: Goals = Goals()
    said_by: Mapping[str, str] = {}
    windows: tuple[Window, ...] = ()
    windows_by: str = ""

    def is_said(self, field: str) -> bool:
        """Whether somebody has said that goal, so that it binds."""
        return field in self.said_by

    def by(self, field: str) -> str:
        """Who said it, for a sentence."""
        return self.said_by.get(field, USUAL)


def effective(asked: Wishes, named: Policy | None, labels: Mapping[str, str], policies: Iterable[Policy]) -> Effective:
    """The goals of a move of a VM with these labels."""
    everyone = tuple(policies)
    own, usual = selected(everyone, labels), default_of(everyone)
    layers = [(ASKED, asked)]
    layers += [(f"policy {named.name}, which was named", named.goals)] if named else []
    layers += [(f"policy {own.name}, which selects it", own.goals)] if own else []
    layers += [(f"policy {usual.name}, the default", usual.goals)] if usual else []
    said: dict[str, object] = {}
    said_by: dict[str, str] = {}
    for who, wishes in reversed(layers):
        for field in Wishes.__struct_fields__:
            value = getattr(wishes, field)
            if value is not None:
                said[field], said_by[field] = value, who
    of_window = next((policy for policy in (named, own, usual) if policy is not None and policy.windows), None)
    return Effective(
        goals=msgspec.structs.replace(Goals(), **said),
        said_by=said_by,
        windows=of_window.windows if of_window else (),
        windows_by=of_window.name if of_window else "",
    )


def sentences(effective: Effective) -> tuple[str, ...]:
    """What was said and by whom; what nobody has said is not mentioned."""
    goals = effective.goals
    words = {
        "max_downtime_ms": f"downtime up to {goals.max_downtime_ms} ms",
        "finish_within_s": f"finished within {goals.finish_within_s:g} s",
        "max_slowdown_percent": f"slowed down by up to {goals.max_slowdown_percent} %",
        "bandwidth_bytes_per_s": (
            f"at most {goals.bandwidth_bytes_per_s / 2**20:.1f} MiB/s"
            if goals.bandwidth_bytes_per_s
            else "as fast as the link"
        ),
        "may_pause": "may be paused" if goals.may_pause else "may not be paused",
        "never_postcopy": "never post-copy" if goals.never_postcopy else "post-copy is allowed",
        "transport": f"transport {goals.transport.value}",
        "verify_disks": f"copied disks compared: {goals.verify_disks.value}",
    }
    return tuple(f"goal: {text}: {effective.by(field)}" for field, text in words.items() if effective.is_said(field))
