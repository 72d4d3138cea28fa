"""The table of the method: what it names exists, and the page has all of it."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from _method import rows, section, sentences

ROOT = Path(__file__).parents[2]
PLACES = [place for row in rows() for place in (*row["code"], *row["tests"])]


def names_of(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Classes, functions, fields and constants, those of classes with dots."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= {prefix + node.name} | names_of(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            found.add(prefix + node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("place", sorted(set(PLACES)))
def test_what_the_table_names_exists(place: str) -> None:
    file, _, name = place.partition("::")
    assert (ROOT / file).is_file()
    assert name in names_of(ast.parse((ROOT / file).read_text(encoding="utf-8")).body)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["row"][:30])
def test_every_row_has_code_and_a_test_or_says_why_not(row: dict[str, Any]) -> None:
    assert set(row) <= {"row", "section", "code", "tests", "choice"}
    assert (row["code"] and row["tests"]) or row["choice"]
    assert all(place.startswith("tests/") and "::test_" in place for place in row["tests"])


def test_the_page_has_the_table_with_what_was_measured() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert section(ROOT / "studies" / "results") in page
    assert "not measured" not in sentences(ROOT / "studies" / "results").values()


def test_nothing_measured(tmp_path: Path) -> None:
    assert set(sentences(tmp_path).values()) == {"not measured"}
