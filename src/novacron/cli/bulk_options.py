"""Options that say how a bulk migration goes: limits, budget, priorities, goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from novacron.cli.complete import names
from novacron.cli.goal_options import goals_of, says_goals
from novacron.cli.options import PAIR, RATE

if TYPE_CHECKING:
    from novacron.client.bulk_migrations import BulkMigrationCreate

F = TypeVar("F", bound=Callable[..., Any])
AT_ONCE = click.IntRange(1, 256)

_OPTIONS = (
    click.option("--max-concurrent", type=AT_ONCE, metavar="N", help="Moves at once; usual 5."),
    click.option("--max-per-node", type=AT_ONCE, metavar="N", help="At once on one node, others' counted; usual 2."),
    click.option("--max-per-link", type=AT_ONCE, metavar="N", help="At once between two nodes; usual 2."),
    click.option("--budget", type=RATE, metavar="RATE", help="Bandwidth of all together, shared evenly: 200MiB/s."),
    click.option("--max-attempts", type=click.IntRange(1, 10), metavar="N", help="For one VM; usual 3."),
    click.option("--priority", "priorities", type=PAIR, metavar="VM=N", multiple=True,
                 help="Of a VM, 0 to 100; usual: its label novacron.io/migration-priority, else 50. Repeatable."),
    click.option("--now", is_flag=True, default=None, help="Whatever the windows of policies say."),
    click.option("--policy", metavar="POLICY", shell_complete=names("migration_policies"),
                 help="With the goals of this policy."),
)  # fmt: skip
_FIELDS = {
    "max_concurrent": "max_concurrent",
    "max_per_node": "max_per_node",
    "max_per_link": "max_per_link",
    "budget": "bandwidth_budget_bytes_per_s",
    "max_attempts": "max_attempts",
    "policy": "policy",
    "now": "now",
}


def says_how(function: F) -> F:
    """For a command that begins or plans a bulk migration; `how` reads what was given. Each move's goals too."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return says_goals(function)


def how(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of it, by the names the API has. :raise click.BadParameter: a priority is no number."""
    said = {field: given[option] for option, field in _FIELDS.items() if given.get(option) is not None}
    priorities = {vm: _number(vm, text) for vm, text in given["priorities"]}
    return {**said, **goals_of(given), **({"priorities": priorities} if priorities else {})}


def _number(vm: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 100:
        raise click.BadParameter(f"{vm}={text}: is no number from 0 to 100", param_hint="--priority")
    return int(text)


def start_of(plan: Path) -> BulkMigrationCreate:
    """What a plan kept with `-o json` says is to be sent. :raise click.BadParameter: it is no plan."""
    import msgspec

    from novacron.client.bulk_migrations import BulkMigrationPlan

    try:
        return msgspec.json.decode(plan.read_bytes(), type=BulkMigrationPlan).start
    except (OSError, msgspec.DecodeError) as wrong:
        raise click.BadParameter(f"{plan} is no plan: {wrong}", param_hint="--plan") from wrong
