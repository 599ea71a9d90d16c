"""What the options about high availability mean, as the body that is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from novacron.client.ha import Ha

POLICIES = ("none", "restart")
CLASSES = ("agent", "timer", "watchdog", "bmc")


def survives(function: Any) -> Any:
    """Options for what becomes of a VM when its node fails."""
    for option in (
        click.option("--ha-priority", type=click.IntRange(0, 100), help="More is restarted first; default 50."),
        click.option("--ha-min-fence", type=click.Choice(CLASSES),
                     help="How surely a node must end it to have it restarted elsewhere; default watchdog."),
        click.option("--ha", type=click.Choice(POLICIES),
                     help="restart: start it elsewhere when its node fails; default none. Counts from its next start."),
    ):  # fmt: skip
        function = option(function)
    return function


def ha_of(given: dict[str, Any]) -> Ha | None:
    """What the options of `survives` come to, taken out of all that were given; None: there are none."""
    from novacron.client.ha import Ha

    policy, priority, min_fence = given.pop("ha"), given.pop("ha_priority"), given.pop("ha_min_fence")
    if policy is None and (priority is not None or min_fence is not None):
        raise click.UsageError("--ha-priority and --ha-min-fence go with --ha restart")
    if policy is None:
        return None
    more: dict[str, Any] = {"priority": priority, "min_fence_class": min_fence}
    return Ha(policy=policy, **{key: value for key, value in more.items() if value is not None})


def ha_words(ha: Ha) -> str:
    """For people; empty: nothing is restarted."""
    if ha.policy == "none":
        return ""
    return f"{ha.policy} elsewhere from nodes of fence class {ha.min_fence_class} or more, priority {ha.priority}"
