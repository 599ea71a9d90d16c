"""A template's version read from a YAML or JSON file."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import yaml

from novacron.cli.vm_spec import read_document
from novacron.client.templates import VersionCreate


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases: a few of them could stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)


def read_version(file: Path) -> VersionCreate:
    """What the file holds. :raise click.BadParameter: it is no version."""
    text = read_document(file, "--from")
    try:
        return msgspec.convert(yaml.load(text, Loader=_Loader), VersionCreate, strict=True)  # noqa: S506 (a safe one)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as wrong:
        raise click.BadParameter(f"{file}: {wrong}", param_hint="--from") from wrong
