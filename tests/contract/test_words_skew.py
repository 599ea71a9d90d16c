"""Every word of this tree beside the earlier one's: what either writes the other can read. No process is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.system.skew_site import EARLIER, tree_of, why_not_there

# Prints {class: {"fields": {name: required}, "tag": ...}} and {enumeration: [values]} of all that is written or sent.
LIST = """
import enum, importlib, importlib.util, json, msgspec, pkgutil, sys
import novacron.client, novacron.model, novacron.wire
structs, words = {}, {}
def take(module):
    for one in vars(module).values():
        if not isinstance(one, type) or one.__module__ != module.__name__:
            continue
        name = f"{module.__name__}.{one.__qualname__}"
        if issubclass(one, msgspec.Struct):
            fields = {field.encode_name: field.required for field in msgspec.structs.fields(one)}
            structs[name] = {"fields": fields, "tag": one.__struct_config__.tag}
        elif issubclass(one, enum.Enum):
            words[name] = [str(member.value) for member in one]
for package in (novacron.model, novacron.wire, novacron.client):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        # wire.rest is FastAPI's, and what clients read of it is in client; client.line is no word, but how it is sent
        if not found.name.startswith(("novacron.wire.rest", "novacron.client.line")):
            take(importlib.import_module(found.name))
if importlib.util.find_spec("novacron.control.roster"):
    take(importlib.import_module("novacron.control.roster"))
json.dump({"structs": structs, "words": words}, sys.stdout)
"""

NEVER_WRITTEN = ("novacron.client.",)
"""Answers and requests of REST: what the server takes and gives is strict there, and the client only reads."""

Words = Mapping[str, Mapping[str, object]]


def words_of(source: Path) -> dict[str, dict[str, object]]:
    path = f"{source}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIST],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=120,
    )
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module", params=EARLIER.values())
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Words, Words]:
    """The earlier one's and ours."""
    if why := why_not_there(request.param):
        pytest.skip(why)
    old = tree_of(request.param, tmp_path_factory.mktemp("skew") / "old")
    return words_of(old), words_of(Path(__file__).parents[2] / "src")


def not_readable(written: Words, read: Words) -> list[str]:
    """The fields that the reader needs and the writer does not know."""
    found = []
    for name, mine in read["structs"].items():
        theirs = written["structs"].get(name)
        if theirs is None:
            continue
        if theirs["tag"] != mine["tag"]:  # type: ignore[index]
            found.append(f"{name}: its tag")
        needed = {field for field, required in mine["fields"].items() if required}  # type: ignore[index]
        found += [f"{name}.{field}" for field in sorted(needed - set(theirs["fields"]))]  # type: ignore[index]
    return found


def test_what_the_earlier_version_writes_is_read(both: tuple[Words, Words]) -> None:
    old, new = both
    assert len(old["structs"]) > 100
    assert not_readable(old, new) == []


def test_what_is_written_the_earlier_version_reads(both: tuple[Words, Words]) -> None:
    old, new = both
    assert [name for name in not_readable(new, old) if not name.startswith(NEVER_WRITTEN)] == []


def test_no_word_of_an_enumeration_has_gone(both: tuple[Words, Words]) -> None:
    old, new = both
    assert len(old["words"]) > 20
    gone = {name: sorted(set(words) - set(new["words"].get(name, ()))) for name, words in old["words"].items()}
    assert {name: words for name, words in gone.items() if words} == {}


def test_a_field_that_became_needed_is_found() -> None:
    """The comparison itself: else it might compare nothing."""
    old = {"structs": {"a": {"fields": {"x": True}, "tag": None}}, "words": {}}
    new = {"structs": {"a": {"fields": {"x": True, "y": True, "z": False}, "tag": None}}, "words": {}}
    assert not_readable(old, new) == ["a.y"]
    assert not_readable(new, old) == []
