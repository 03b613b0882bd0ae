"""docs/papers.md stays true: its symbols import, its tests exist, and no source named in the code is missing."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def rows() -> list[list[str]]:
    """The cells of every line of a table that names a symbol."""
    lines = [line.strip().strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines if "`" in cells[2]]


def symbols() -> list[str]:
    return sorted({symbol for cells in rows() for symbol in re.findall("`([^`]+)`", cells[2])})


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[^`]+::[^`]+)`", PAGE)))


def resolve(symbol: str) -> object:
    """The object named `module.object`, below the package."""
    parts = symbol.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["onpath", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise ImportError(symbol)


def test_the_table_is_read() -> None:
    assert rows() and named_tests()
    assert all("::" in cells[3] for cells in rows() if len(cells) == 4)


@pytest.mark.parametrize("symbol", symbols())
def test_symbol_exists(symbol: str) -> None:
    assert resolve(symbol) is not None


@pytest.mark.parametrize("test", named_tests())
def test_named_test_exists(test: str) -> None:
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_source_in_the_code_is_in_the_table() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    missing = set(ARXIV.findall(text)) - set(ARXIV.findall(PAGE))
    assert not missing, f"named in the code, absent from docs/papers.md: {sorted(missing)}"


def symbols_in_the_docs() -> list[str]:
    """Every `onpath.module.object` that a page quotes in backquotes."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = {name for page in pages for name in re.findall(r"`onpath\.([\w.]+)`", page.read_text(encoding="utf-8"))}
    return sorted(found)


@pytest.mark.parametrize("symbol", symbols_in_the_docs())
def test_symbol_of_the_docs_exists(symbol: str) -> None:
    assert resolve(symbol) is not None
