"""`novacron events`: show changes as they happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from novacron.cli.options import PAIR, asks
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.model.event import Event

TYPES = (
    "vm", "node", "image", "migration", "pool", "volume", "network", "security_group", "snapshot", "schedule",
    "template", "migration_policy", "bulk_migration", "migration_rehearsal", "link", "balancer",
)  # fmt: skip


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on for ever, through broken connections.")
@click.option("--type", "types", type=click.Choice(TYPES), multiple=True, help="Only changes of these. Repeatable.")
@click.option("--id", "ids", metavar="ID", multiple=True, help="Only changes of this object. Repeatable.")
@click.option("-l", "--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Only objects with it.")
@click.option("--after", metavar="SEQ", type=click.IntRange(min=0), help="Only what came after this number.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="json: one event a line.")
@asks
def events(
    session: Session,
    follow: bool,
    types: tuple[str, ...],
    ids: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    after: int | None,
    output: str,
) -> None:
    """Show changes of VMs, nodes, images and migrations.

    Without --follow: those that are still kept (after --after). With it: new ones as they happen, after --after or
    from now on. The number at the beginning of a line can be given to --after, to miss nothing.
    """
    from novacron.model.event import ObjectType
    from novacron.wire.stream import Resync

    if not follow and after is None:
        after = 0
    with session.connect() as nova:
        for heard in nova.events(
            object_types=[ObjectType(one) for one in types],
            ids=ids,
            labels=dict(labels),
            after=after,
            until_live=not follow,
        ):
            if isinstance(heard, Resync):
                click.echo(f"note: older changes are no longer kept; going on after {heard.seq}", err=True)
            else:
                click.echo(_line(heard) if output == "table" else _json(heard))


def _line(event: Event) -> str:
    from novacron.cli import safe

    shown = event.object
    when = str(shown.get("updated_at", ""))[:19].replace("T", " ")
    what = str(shown.get("name") or shown.get("vm_name") or event.object_id)
    states = [str(shown[key]) for key in ("state",) if key in shown]
    if isinstance(task := shown.get("task"), dict):
        states.append(f"({task.get('kind')})")
    if isinstance(problem := shown.get("problem"), dict):
        states.append(f"! {problem.get('message')}")
    return safe.line(f"{event.seq}  {when}  {event.type:<18}  {what:<20}  {' '.join(states)}".rstrip())


def _json(event: Event) -> str:
    import msgspec

    from novacron.cli import safe

    return safe.json_text(msgspec.json.encode(event).decode())
