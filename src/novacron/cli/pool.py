"""`novacron pool`: say where volumes may lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, SIZE, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session
from novacron.cli.vm_spec import merged

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.pools import Pool, Reach

DRIVERS = ("directory", "nfs", "lvm-thin", "ceph-rbd", "iscsi", "nbd")
POOL = click.argument("pool", metavar="POOL", shell_complete=names("pools"))


@click.group()
def pool() -> None:
    """Say where volumes may lie. POOL is a name or an id."""


@pool.command("list")
@selects
@click.option("--driver", type=click.Choice(DRIVERS), help="Only those of this driver.")
@prints
@asks
def list_pools(session: Session, selector: tuple[str, ...], driver: str | None) -> None:
    """List storage pools, oldest first."""
    from novacron.client import pools

    with session.connect() as nova:
        session.printer.many(nova.each(pools.search(labels=selector, driver=driver or "")), _columns(), _name)


@pool.command()
@POOL
@prints
@asks
def show(session: Session, pool: str) -> None:
    """Show one storage pool, and which nodes reach it."""
    from novacron.client import pools

    with session.connect() as nova:
        session.printer.one(nova.do(pools.get(pool)), _details, _name)


@pool.command()
@click.argument("name")
@click.option("--driver", type=click.Choice(DRIVERS), required=True, help="How volumes are kept there.")
@click.option("-O", "--option", "options", type=PAIR, metavar="KEY=VALUE", multiple=True,
              help="What the driver must be told. Repeatable.")  # fmt: skip
@click.option("--shared/--not-shared", default=None, help="Nodes that reach it see the same volumes; "
              "default: as the driver usually is.")  # fmt: skip
@click.option("--image-cache", type=SIZE, metavar="SIZE", default=0, help="Keep so much of unneeded image files.")
@click.option("--quota", type=SIZE, metavar="SIZE", default=0, help="Volumes in it are at most so large together.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(session: Session, name: str, driver: str, image_cache: int, quota: int, **given: Any) -> None:
    """Make a storage pool known. Every node is asked at once whether it reaches it.

    \b
    novacron pool create fast --driver directory -O path=/srv/fast
    novacron pool create nas --driver nfs -O path=/srv/nas -O server=192.0.2.1 -O export=/vms
    """
    from novacron.client import pools

    wish = pools.PoolCreate(
        name=name,
        driver=driver,
        options=dict(given["options"]),
        shared=given["shared"],
        description=given["description"],
        labels=dict(given["labels"]),
        image_cache_bytes=image_cache,
        quota_bytes=quota,
    )
    with session.connect() as nova:
        made = nova.do(pools.create(wish))
    session.printer.done(made, f"{made.name}: made; novacron pool show {made.name} says which nodes reach it", _name)


@pool.command()
@POOL
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--description", metavar="TEXT", help="A new description.")
@click.option("-O", "--option", "options", type=PAIR, metavar="KEY=VALUE", multiple=True,
              help="Add or replace what the driver is told; only while nothing lies in it. Repeatable.")  # fmt: skip
@click.option("--image-cache", "image_cache_bytes", type=SIZE, metavar="SIZE", help="Of unneeded image files.")
@click.option("--quota", "quota_bytes", type=SIZE, metavar="SIZE",
              help="Of its volumes together; below what is promised none is made or grows. 0: no quota.")  # fmt: skip
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take it away. Repeatable.")
@prints
@asks
def update(session: Session, pool: str, labels: tuple[tuple[str, str], ...], remove_label: tuple[str, ...],
           options: tuple[tuple[str, str], ...], **given: Any) -> None:  # fmt: skip
    """Change a storage pool."""
    from novacron.cli.edit import edit
    from novacron.client import pools
    from novacron.client.call import Call

    changes = {key: value for key, value in given.items() if value is not None}
    if not (changes or labels or remove_label or options):
        raise click.UsageError("nothing to change was given")

    def change(now: Pool) -> Call[Pool]:
        if labels or remove_label:
            changes["labels"] = merged(now.labels, labels, remove_label)
        if options:
            changes["options"] = now.options | dict(options)
        return pools.update(pool, pools.PoolUpdate(**changes), revision=now.revision)

    with session.connect() as nova:
        changed = edit(nova, pools.get(pool), change)
    session.printer.done(changed, f"{changed.name}: changed", _name)


@pool.command()
@POOL
@confirms
@asks
def delete(session: Session, pool: str, yes: bool) -> None:
    """Forget a storage pool in which no volume lies. What is in it on the nodes stays there."""
    from novacron.cli import safe
    from novacron.client import pools

    confirm(f"Forget storage pool {safe.line(pool)}?", yes=yes)
    with session.connect() as nova:
        nova.do(pools.delete(pool))
    click.echo(safe.line(f"{pool}: deleted"))


def _name(one: Pool) -> str:
    return one.name


def _columns() -> list[Column[Pool]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column
    from novacron.cli.vm_show import labels

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("DRIVER", lambda one: one.driver),
        Column("SHARED", lambda one: "yes" if one.shared else "no"),
        Column("NODES", lambda one: f"{sum(reach.available for reach in one.reach)}/{len(one.reach)}"),
        Column("FREE", lambda one: _room(one.free_bytes, one.size_bytes)),
        Column("VOLUMES", lambda one: str(one.volume_count)),
        Column("PROMISED", _promised),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _room(free_bytes: int, size_bytes: int) -> str:
    from novacron.cli import amounts

    return f"{amounts.size(free_bytes)} of {amounts.size(size_bytes)}" if size_bytes else "-"


def _promised(one: Pool) -> str:
    from novacron.cli import amounts

    quota = f" of {amounts.size(one.quota_bytes)}" if one.quota_bytes else ""
    return f"{amounts.size(one.promised_bytes)}{quota}"


def _details(one: Pool) -> Iterator[tuple[str, str]]:
    from novacron.cli import amounts
    from novacron.cli.vm_show import labels

    yield "Name", one.name + (" (the default pool)" if one.is_default else "")
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "Driver", one.driver
    for key, value in sorted(one.options.items()):
        yield f"  {key}", value
    yield "Shared", "yes: nodes see the same volumes" if one.shared else "no: each node has its own volumes"
    yield "Volumes", f"{one.volume_count}, {_promised(one)} promised to guests"
    yield "Free", _room(one.free_bytes, one.size_bytes)
    if one.image_cache_bytes:
        yield "Image cache", amounts.size(one.image_cache_bytes)
    for reach in one.reach:
        yield f"On {reach.node}", _reached(reach)
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _reached(reach: Reach) -> str:
    if not reach.available:
        return f"out of reach: {reach.reason}"
    return f"within reach, {_room(reach.free_bytes, reach.size_bytes)} free" if reach.size_bytes else "within reach"
