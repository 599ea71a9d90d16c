"""`novacron migration-policy`: goals of migrations, under names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.goal_options import goals_of, says_goals
from novacron.cli.options import PAIR, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session
from novacron.cli.window import WINDOW

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.migration_policies import Policy, Window

POLICY = click.argument("policy", metavar="POLICY", shell_complete=names("migration_policies"))


@click.group("migration-policy")
def migration_policy() -> None:
    """Give goals of migrations a name. POLICY is a name or an id.

    Each goal of a migration is the first that is said: by the request; by the policy it names; by the policy that
    selects the VM most exactly; by the default policy. What nobody says is as is usual.
    """


@migration_policy.command("list")
@selects
@prints
@asks
def list_policies(session: Session, selector: tuple[str, ...]) -> None:
    """List migration policies, oldest first."""
    from novacron.client import migration_policies

    with session.connect() as nova:
        session.printer.many(nova.each(migration_policies.search(labels=selector)), _columns(), _name)


@migration_policy.command()
@POLICY
@prints
@asks
def show(session: Session, policy: str) -> None:
    """Show one migration policy."""
    from novacron.client import migration_policies

    with session.connect() as nova:
        session.printer.one(nova.do(migration_policies.get(policy)), _details, _name)


@migration_policy.command()
@click.argument("name")
@click.option("--vms", "selector", type=PAIR, metavar="KEY=VALUE", multiple=True,
              help="For VMs with this label; an empty value: any value. Repeatable: all of them.")  # fmt: skip
@click.option("--default", "is_default", is_flag=True, help="For all that nobody else says.")
@says_goals
@click.option("--window", "windows", type=WINDOW, metavar="WINDOW", multiple=True,
              help="When moves may begin: 'mon-fri 22:00-05:00 Europe/Berlin'. None: at any time.")  # fmt: skip
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Of the policy. Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(session: Session, name: str, selector: tuple[tuple[str, str], ...], is_default: bool,
           windows: tuple[Window, ...], labels: tuple[tuple[str, str], ...], description: str,
           **given: Any) -> None:  # fmt: skip
    """Make a migration policy.

    \b
    novacron migration-policy create database --vms tier=db --max-downtime-ms 50 --never-postcopy
    novacron migration-policy create usual --default --may-pause
    novacron migration-policy create nightly --vms tier=db --window "daily 22:00-05:00 Europe/Berlin"
    """
    from novacron.client import migration_policies, migrations

    wish = migration_policies.PolicyCreate(
        name=name,
        goals=migrations.Goals(**goals_of(given)),
        selector=dict(selector),
        is_default=is_default,
        windows=list(windows),
        labels=dict(labels),
        description=description,
    )
    with session.connect() as nova:
        made = nova.do(migration_policies.create(wish))
    session.printer.done(made, f"{made.name}: {_goals(made)}", _name)


@migration_policy.command()
@POLICY
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--vms", "selector", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Instead of those so far.")
@click.option("--default/--no-default", "is_default", default=None, help="For all that nobody else says, or no more.")
@says_goals
@click.option("--window", "windows", type=WINDOW, metavar="WINDOW", multiple=True, help="Instead of those so far.")
@click.option("--any-time", is_flag=True, help="No windows any more.")
@click.option("--forget", multiple=True, metavar="GOAL", help="Say no more of it, as in max_downtime_ms. Repeatable.")
@click.option("--description", metavar="TEXT", help="For people.")
@prints
@asks
def update(session: Session, policy: str, selector: tuple[tuple[str, str], ...], forget: tuple[str, ...],
           windows: tuple[Window, ...], any_time: bool, name: str | None, is_default: bool | None,
           description: str | None, **given: Any) -> None:  # fmt: skip
    """Change a migration policy. Goals that are not given stay; migrations under way keep those they began with."""
    import msgspec

    from novacron.cli.edit import edit
    from novacron.client import migration_policies, migrations

    plain = {"name": name, "is_default": is_default, "description": description, "selector": dict(selector) or None}
    said: dict[str, Any] = {key: value for key, value in plain.items() if value is not None}
    if windows or any_time:
        said["windows"] = list(windows)
    goals = goals_of(given) | dict.fromkeys(forget)
    if strays := set(goals) - set(migrations.Goals.__struct_fields__):
        raise click.BadParameter(f"{', '.join(sorted(strays))}: no such goal", param_hint="--forget")
    if not said and not goals:
        raise click.UsageError("say what to change; --help lists it")

    def change(now: Policy) -> Any:
        changed = said | ({"goals": msgspec.structs.replace(now.goals, **goals)} if goals else {})
        return migration_policies.update(policy, migration_policies.PolicyUpdate(**changed), revision=now.revision)

    with session.connect() as nova:
        changed = edit(nova, migration_policies.get(policy), change)
    session.printer.done(changed, f"{changed.name}: {_goals(changed)}", _name)


@migration_policy.command()
@POLICY
@confirms
@asks
def delete(session: Session, policy: str, yes: bool) -> None:
    """Delete a migration policy; migrations under way keep its goals."""
    from novacron.cli import safe
    from novacron.client import migration_policies

    confirm(f"Delete migration policy {safe.line(policy)}?", yes=yes)
    with session.connect() as nova:
        nova.do(migration_policies.delete(policy))
    click.echo(safe.line(f"{policy}: deleted"))


def _name(one: Policy) -> str:
    return one.name


def _goals(one: Policy) -> str:
    from novacron.cli.goal_options import words

    return words(one.goals)


def _windows(one: Policy) -> str:
    from novacron.cli.window import words

    return words(one.windows)


def _for(one: Policy) -> str:
    from novacron.cli.vm_show import labels

    told = [labels(one.selector)] if one.selector else []
    return ", ".join([*told, *(["all others"] if one.is_default else [])]) or "who names it"


def _columns() -> list[Column[Policy]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column

    now = amounts.now()
    return [
        Column("NAME", _name),
        Column("FOR", _for),
        Column("GOALS", _goals),
        Column("WINDOWS", _windows, wide=True),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Policy) -> Iterator[tuple[str, str]]:
    from novacron.cli.vm_show import labels

    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "For", _for(one)
    yield "Goals", _goals(one)
    yield "Begins", _windows(one)
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
