"""Options that say the goals of a migration, and goals in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from novacron.cli import amounts
from novacron.cli.options import RATE, TIME

if TYPE_CHECKING:
    from novacron.client.migrations import Goals

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--max-downtime-ms", type=click.IntRange(1, 2_000_000), help="It stands still for no longer; usual 100."
    ),
    click.option("--finish-within", type=TIME, metavar="TIME", help="Refused or rolled back when longer; usual 1h."),
    click.option(
        "--max-slowdown",
        type=click.IntRange(0, 90),
        metavar="PERCENT",
        help="Keep it waiting so much of its time; usual 0.",
    ),
    click.option("--bandwidth", type=RATE, metavar="RATE", help="At most so fast, as in 100MiB/s; usual: as the link."),
    click.option(
        "--may-pause/--no-may-pause", default=None, help="It may stand still for what cannot be caught up with."
    ),
    click.option("--never-postcopy/--allow-postcopy", default=None, help="Its memory is never on two nodes."),
    click.option(
        "--transport",
        type=click.Choice(["auto", "direct", "proxy"]),
        help="Through the stream proxies or not; usual: where the link is the bottleneck.",
    ),
    click.option(
        "--verify-disks",
        type=click.Choice(["none", "sampled", "full"]),
        help="How copied disks are compared afterwards; usual sampled.",
    ),
)
_FIELDS = {
    "max_downtime_ms": "max_downtime_ms",
    "finish_within": "finish_within_s",
    "max_slowdown": "max_slowdown_percent",
    "bandwidth": "bandwidth_bytes_per_s",
    "may_pause": "may_pause",
    "never_postcopy": "never_postcopy",
    "transport": "transport",
    "verify_disks": "verify_disks",
}


def says_goals(function: F) -> F:
    """For a command that takes goals; `goals_of` reads what was given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def goals_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The goals among the values of a command's options, by the names the API has; what was not given is not there."""
    return {field: given[option] for option, field in _FIELDS.items() if given.get(option) is not None}


def words(goals: Goals) -> str:
    """What is said, in a line; nothing said: `-`."""
    told = []
    if goals.max_downtime_ms is not None:
        told.append(f"downtime up to {goals.max_downtime_ms} ms")
    if goals.finish_within_s is not None:
        told.append(f"within {amounts.seconds(goals.finish_within_s)}")
    if goals.max_slowdown_percent is not None:
        told.append(f"slowed down up to {goals.max_slowdown_percent} %")
    if goals.bandwidth_bytes_per_s is not None:
        told.append(amounts.rate(goals.bandwidth_bytes_per_s) if goals.bandwidth_bytes_per_s else "as fast as the link")
    if goals.may_pause is not None:
        told.append("may be paused" if goals.may_pause else "may not be paused")
    if goals.never_postcopy is not None:
        told.append("never post-copy" if goals.never_postcopy else "post-copy allowed")
    if goals.transport is not None:
        told.append(f"transport {goals.transport}")
    if goals.verify_disks is not None:
        told.append(f"copied disks compared: {goals.verify_disks}")
    return ", ".join(told) or "-"
