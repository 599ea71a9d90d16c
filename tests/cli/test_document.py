"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

import click

from novacron.cli.document import commands, document
from novacron.cli.main import NOUNS, novacron

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_in_step() -> None:
    assert PAGE.read_text() == document(), "run: python -m novacron.cli.document > docs/cli.md"


def test_every_command_and_option_says_what_it_is() -> None:
    for path, ctx in commands(novacron, "novacron", None):
        assert ctx.command.help, path
        for one in ctx.command.params:
            if isinstance(one, click.Option) and not one.hidden:
                assert one.help, f"{path} {one.opts}"


def test_every_command_is_on_the_page() -> None:
    page = PAGE.read_text()
    found = [path for path, ctx in commands(novacron, "novacron", None) if ctx.parent]
    assert len(found) > 35
    for path in found:
        assert f"# {path}\n" in page


def test_the_short_help_of_a_noun_is_the_first_sentence_of_its_own() -> None:
    ctx = click.Context(novacron)
    for name, (_, text) in NOUNS.items():
        command = novacron.get_command(ctx, name)
        assert command is not None
        assert (command.help or "").startswith(text.rstrip("."))
