"""Small files, small functions: the budgets of CONTRIBUTING.md, counted."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FILE_MEDIAN, FILE_P90, FILE_MAX = 150, 400, 600
FUNCTION_MEDIAN, FUNCTION_MAX = 10, 60


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_files_are_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert [f"{path}: {n}" for path, n in lengths.items() if n > FILE_MAX] == []
    ordered = sorted(lengths.values())
    assert statistics.median(ordered) <= FILE_MEDIAN
    assert ordered[int(len(ordered) * 0.9)] <= FILE_P90


def test_functions_are_small() -> None:
    found = [item for path in SOURCES for item in functions(path)]
    assert [f"{name}: {n}" for name, n in found if n > FUNCTION_MAX] == []
    assert statistics.median(n for _, n in found) <= FUNCTION_MEDIAN


def test_every_module_says_what_it_is_in_one_line() -> None:
    silent = []
    for path in SOURCES:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        first = docstring.splitlines()[0] if docstring else ""
        if not first or first[-1] not in ".:!?)":
            silent.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert silent == []
