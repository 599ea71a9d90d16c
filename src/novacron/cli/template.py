"""`novacron template`: write down VMs that are made many times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.options import FILE, PAIR, asks, confirm, confirms, prints, selects
from novacron.cli.session import Session
from novacron.cli.vm_follow import warn

if TYPE_CHECKING:
    from novacron.cli.output import Column
    from novacron.client.templates import Parameter, Template, Version

TEMPLATE = click.argument("template", metavar="TEMPLATE", shell_complete=names("templates"))
FROM = click.option("--from", "file", type=FILE, metavar="FILE", required=True, help="YAML or JSON; - is stdin.")


@click.group()
def template() -> None:
    """Write down VMs that are made many times. TEMPLATE is a name or an id.

    \b
    A version is a file:
      vm:                     # what a VM is made of: the fields of POST /vms, without its name
        image: debian-12
        memory_mib: "{{param.memory_mib}}"
        cloud_init: {user_data: "#cloud-config\\nhostname: {{vm.name}}\\n"}
      parameters:
        - {name: memory_mib, type: integer, default: 2048}
    """


@template.command("list")
@selects
@prints
@asks
def list_templates(session: Session, selector: tuple[str, ...]) -> None:
    """List templates, oldest first."""
    from novacron.client import templates

    with session.connect() as nova:
        session.printer.many(nova.each(templates.search(labels=selector)), _columns(), _name)


@template.command()
@TEMPLATE
@prints
@asks
def show(session: Session, template: str) -> None:
    """Show one template, its parameters and versions."""
    from novacron.client import templates

    with session.connect() as nova:
        session.printer.one(nova.do(templates.get(template)), _details, _name)


@template.command()
@click.argument("name")
@FROM
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@prints
@asks
def create(session: Session, name: str, file: Path, labels: tuple[tuple[str, str], ...], description: str) -> None:
    """Write a template down with its first version."""
    from novacron.cli.template_file import read_version
    from novacron.client import templates

    first = read_version(file)
    wish = templates.TemplateCreate(
        name=name,
        vm=first.vm,
        parameters=first.parameters,
        note=first.note,
        labels=dict(labels),
        description=description,
    )
    with session.connect() as nova:
        made = nova.do(templates.create(wish))
    session.printer.done(made, f"{made.name}: version 1", _name)


@template.command("add-version")
@TEMPLATE
@FROM
@prints
@asks
def add_version(session: Session, template: str, file: Path) -> None:
    """Add a version; those before it stay as they are."""
    from novacron.cli.template_file import read_version
    from novacron.client import templates

    version = read_version(file)
    with session.connect() as nova:
        made = nova.do(templates.add_version(template, version))
    session.printer.done(made, f"{made.name}: version {made.versions[-1].number}", _name)


@template.command("delete-version")
@TEMPLATE
@click.argument("number", type=click.IntRange(min=1))
@prints
@asks
def delete_version(session: Session, template: str, number: int) -> None:
    """Forget a version that is neither the default nor the newest; VMs made of it stay."""
    from novacron.client import templates

    with session.connect() as nova:
        left = nova.do(templates.delete_version(template, number))
    session.printer.done(left, f"{left.name}: version {number} forgotten", _name)


@template.command("set-default")
@TEMPLATE
@click.argument("number", type=click.IntRange(min=0))
@prints
@asks
def set_default(session: Session, template: str, number: int) -> None:
    """Take version NUMBER when none is asked for; 0: always the newest."""
    from novacron.client import templates

    with session.connect() as nova:
        changed = nova.do(templates.update(template, templates.TemplateUpdate(default_version=number)))
    session.printer.done(changed, f"{changed.name}: {_default(changed)}", _name)


@template.command()
@TEMPLATE
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="NAME-1, NAME-2 and so on.")
@click.option("--first", type=click.IntRange(min=1), default=1, show_default=True, help="Where the numbers begin.")
@click.option("--version", type=click.IntRange(min=0), default=0, help="Instead of the default one.")
@click.option("-p", "--param", "parameters", type=PAIR, metavar="NAME=VALUE", multiple=True, help="Repeatable.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--node", metavar="NODE", shell_complete=names("nodes"), help="All on this node.")
@prints
@asks
def instantiate(
    session: Session,
    template: str,
    name: str,
    count: int,
    first: int,
    version: int,
    parameters: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    node: str | None,
) -> None:
    """Make VMs of a template: all of them, or none.

    \b
    novacron template instantiate web shop --count 50 -p memory_mib=1024
    """
    from novacron.cli import vm_show
    from novacron.client import templates

    with session.connect() as nova:
        known = nova.do(templates.get(template))
        wish = templates.Instantiate(
            name=name,
            count=count,
            first_index=first,
            version=version,
            parameters=_typed(_chosen(known, version), dict(parameters)),
            labels=dict(labels),
            node=node,
        )
        made = nova.do(templates.instantiate(template, wish))
    warn(made.warnings)
    session.printer.many(iter(made.items), vm_show.columns(), vm_show.name)


@template.command()
@TEMPLATE
@confirms
@asks
def delete(session: Session, template: str, yes: bool) -> None:
    """Forget a template; VMs made of it stay."""
    from novacron.cli import safe
    from novacron.client import templates

    confirm(f"Forget template {safe.line(template)}?", yes=yes)
    with session.connect() as nova:
        nova.do(templates.delete(template))
    click.echo(safe.line(f"{template}: forgotten"))


def _chosen(known: Template, number: int) -> Version | None:
    wanted = number or known.default_version or known.versions[-1].number
    return next((version for version in known.versions if version.number == wanted), None)


def _typed(version: Version | None, given: dict[str, str]) -> dict[str, str | int]:
    """Whole numbers where the version wants them; what does not fit is sent as it is and refused by name."""
    wants = {parameter.name for parameter in version.parameters if parameter.type == "integer"} if version else set()
    return {name: int(text) if name in wants and _is_whole(text) else text for name, text in given.items()}


def _is_whole(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 17


def _name(one: Template) -> str:
    return one.name


def _default(one: Template) -> str:
    return f"version {one.default_version}" if one.default_version else "the newest version"


def _columns() -> list[Column[Template]]:
    from novacron.cli import amounts
    from novacron.cli.output import Column
    from novacron.cli.vm_show import labels

    now = amounts.now()
    return [
        Column("NAME", lambda one: one.name),
        Column("VERSIONS", lambda one: str(len(one.versions))),
        Column("DEFAULT", lambda one: str(one.default_version or one.versions[-1].number)),
        Column("AGE", lambda one: amounts.age(one.created_at, now)),
        Column("DESCRIPTION", lambda one: one.description or "-", wide=True),
        Column("LABELS", lambda one: labels(one.labels) or "-", wide=True),
        Column("ID", lambda one: one.id, wide=True),
    ]


def _details(one: Template) -> Iterator[tuple[str, str]]:
    from novacron.cli.vm_show import labels

    yield "Name", one.name
    yield "Id", one.id
    if one.description:
        yield "Description", one.description
    yield "By default", _default(one)
    for version in one.versions:
        words = [version.note] if version.note else []
        words += [_parameter(parameter) for parameter in version.parameters]
        yield f"Version {version.number}", "\n".join(words) or "no parameters"
    yield "Labels", labels(one.labels) or "none"
    yield "Created", f"{one.created_at:%Y-%m-%d %H:%M:%S} UTC"


def _parameter(one: Parameter) -> str:
    must: Any = "must be given" if one.default is None else f"else {one.default}"
    choices = f", one of {', '.join(map(str, one.choices))}" if one.choices else ""
    return f"{one.name} ({one.type}{choices}; {must}) {one.description}".strip()
