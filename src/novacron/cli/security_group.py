"""`novacron security-group`: rules of what may pass the cards of VMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import PAIR, asks, confirm, confirms, prints, selects
from novacron.cli.rule import RULE_RULE, RuleType
from novacron.cli.session import Session

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.security_groups import Rule, SecurityGroup
    from novacron.client.sync import Client

GROUP = click.argument("group", metavar="GROUP", shell_complete=names("security_groups"))
RULES = click.argument("rules", type=RuleType(), metavar="RULE…", nargs=-1, required=True)


@click.group("security-group")
def security_group() -> None:
    """Say what may pass the cards of VMs. GROUP is a name or an id.

    A card in no group lets everything pass that its own addresses send and get. A card in one or more lets pass what
    any of their rules allows, and the answers to it; everything else is refused.
    """


@security_group.command("list")
@selects
@prints
@asks
def list_groups(session: Session, selector: tuple[str, ...]) -> None:
    """List security groups, oldest first."""
    from novacron.client import security_groups

    with session.connect() as nova:
        session.printer.many(nova.each(security_groups.search(labels=selector)), _columns(), _name)


@security_group.command()
@GROUP
@prints
@asks
def show(session: Session, group: str) -> None:
    """Show one security group and its rules."""
    from novacron.client import security_groups

    with session.connect() as nova:
        found = nova.do(security_groups.get(group))
        known = _group_names(nova, found.rules)
        session.printer.one(found, lambda one: _details(one, known), _name)


@security_group.command()
@click.argument("name")
@click.option("--rule", "rules", type=RuleType(), metavar="RULE", multiple=True, help=f"{RULE_RULE}. Repeatable.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(
    session: Session,
    name: str,
    rules: tuple[dict[str, Any], ...],
    labels: tuple[tuple[str, str], ...],
    description: str,
) -> None:
    """Make a security group.

    \b
    novacron security-group create web --rule in,tcp,port=443 --rule in,tcp,port=22,cidr=192.0.2.0/24 --rule out
    novacron security-group create db --rule in,tcp,port=5432,group=web
    """
    from novacron.client import security_groups

    wish = security_groups.SecurityGroupCreate(
        name=name,
        description=description,
        labels=dict(labels),
        rules=[security_groups.Rule(**rule) for rule in rules],
    )
    with session.connect() as nova:
        made = nova.do(security_groups.create(wish))
    session.printer.done(made, f"{made.name}: {_count(made)}", _name)


@security_group.command()
@GROUP
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take a label away. Repeatable.")
@click.option("--description", metavar="TEXT", help="For people.")
@prints
@asks
def update(
    session: Session,
    group: str,
    labels: tuple[tuple[str, str], ...],
    remove_label: tuple[str, ...],
    **given: str | None,
) -> None:
    """Change what a security group is called. Its rules are changed by `rule add` and `rule remove`."""
    from novacron.cli.vm_spec import merged

    said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not said and not labels and not remove_label:
        raise click.UsageError("nothing to change was given")

    def change(now: SecurityGroup) -> dict[str, Any]:
        return said | ({"labels": merged(now.labels, labels, remove_label)} if labels or remove_label else {})

    _edit(session, group, lambda _, now: change(now))


@security_group.command()
@GROUP
@confirms
@asks
def delete(session: Session, group: str, yes: bool) -> None:
    """Delete a security group that no card is in and no rule of another names."""
    from novacron.cli import safe
    from novacron.client import security_groups

    confirm(f"Delete security group {safe.line(group)}?", yes=yes)
    with session.connect() as nova:
        nova.do(security_groups.delete(group))
    click.echo(safe.line(f"{group}: deleted"))


@security_group.group("rule")
def rule() -> None:
    """Add rules to a security group and remove them. They count at once, also for conversations that go on."""


@rule.command("add")
@GROUP
@RULES
@prints
@asks
def add_rules(session: Session, group: str, rules: tuple[dict[str, Any], ...]) -> None:
    """Add rules: in|out[,tcp|udp|icmp][,port=N|N-M][,cidr=SUBNET|group=GROUP]."""

    def change(nova: Client, now: SecurityGroup) -> dict[str, Any]:
        new = [one for one in _rules(nova, rules) if one not in now.rules]
        return {"rules": [*now.rules, *new]}

    _edit(session, group, change)


@rule.command("remove")
@GROUP
@RULES
@prints
@asks
def remove_rules(session: Session, group: str, rules: tuple[dict[str, Any], ...]) -> None:
    """Remove rules, named by the words that `show` prints."""
    from novacron.errors import NotFound

    def change(nova: Client, now: SecurityGroup) -> dict[str, Any]:
        gone = _rules(nova, rules)
        if any(one not in now.rules for one in gone):
            raise NotFound(f"{now.name} has no such rule: novacron security-group show {now.name} lists them")
        return {"rules": [one for one in now.rules if one not in gone]}

    _edit(session, group, change)


def _edit(session: Session, ref: str, change: Callable[[Client, SecurityGroup], dict[str, Any]]) -> None:
    from novacron.cli.edit import edit
    from novacron.client import security_groups

    with session.connect() as nova:
        changed = edit(
            nova,
            security_groups.get(ref),
            lambda now: security_groups.update(
                ref, security_groups.SecurityGroupUpdate(**change(nova, now)), revision=now.revision
            ),
        )
    session.printer.done(changed, f"{changed.name}: {_count(changed)}", _name)


def _rules(nova: Client, words: Sequence[dict[str, Any]]) -> list[Rule]:
    """As the server shows them: groups by id."""
    from novacron.client import security_groups

    found = []
    for one in words:
        group = one.get("group")
        known = {"group": nova.do(security_groups.get(group)).id} if group else {}
        found.append(security_groups.Rule(**one | known))
    return found


def _group_names(nova: Client, rules: Sequence[Rule]) -> dict[str, str]:
    from novacron.client import security_groups

    ids = {rule.group for rule in rules if rule.group}
    return {group_id: nova.do(security_groups.get(group_id)).name for group_id in sorted(ids)}


def _name(one: SecurityGroup) -> str:
    return one.name


def _count(one: SecurityGroup) -> str:
    return "1 rule" if len(one.rules) == 1 else f"{len(one.rules)} rules"


def _columns() -> list[Column[SecurityGroup]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column
    from novacron.cli.vm_show import labels

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("RULES", lambda one: str(len(one.rules))),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("DESCRIPTION", lambda one: one.description or "-", wide=True),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: SecurityGroup, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    from novacron.cli.rule import rule_words
    from novacron.cli.vm_show import labels

    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "Rules", "\n".join(rule_words(rule, known) for rule in one.rules) or "none: nothing may pass"
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"
