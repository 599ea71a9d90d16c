"""The documents are in step with the tree: rooms, walks, promises, links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "novacron"
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def sentence(init: Path) -> str:
    return (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()[0]


def rooms() -> dict[str, str]:
    """Every package below novacron and the first line of its docstring."""
    inits = sorted(PACKAGE.rglob("__init__.py"))
    return {str(init.parent.relative_to(PACKAGE)): sentence(init) for init in inits if init.parent != PACKAGE}


def test_architecture_names_every_room_with_its_own_sentence() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = dict(re.findall(r"^\| `([\w/]+)/` \| (.+?) \|$", text, re.MULTILINE))
    assert listed == rooms()


def test_architecture_is_one_page() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 110


def test_every_symbol_a_document_points_at_exists() -> None:
    missing = []
    for document in DOCUMENTS:
        for path, symbol in re.findall(r"`((?:src|tests)/[\w/.]+\.py)(?:::([\w.]+))?`", document.read_text()):
            file = ROOT / path
            if not file.exists():
                missing.append(f"{document.name}: {path}")
            elif symbol and not re.search(rf"\b(def|class) {symbol.split('.')[-1]}\b", file.read_text()):
                missing.append(f"{document.name}: {path}::{symbol}")
    assert missing == []


def test_every_promise_has_a_test_or_says_pending() -> None:
    text = (ROOT / "SPECIFICATION.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"^\| [A-Z]+\d+ \|", line)]
    assert len(rows) >= 20
    unproven = [
        row for row in rows if not re.search(r"`(tests/[\w/]+\.py(::\w+)?|make [\w-]+)`", row) and "pending" not in row
    ]
    assert unproven == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_no_registry_host_in_lock_or_project_files() -> None:
    for name in ("requirements/dev.txt", "pyproject.toml", "Makefile"):
        assert not re.search(r"https?://", (ROOT / name).read_text()), name
