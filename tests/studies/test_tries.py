"""The table of tries is that of the results, which hold neither crashes nor silent losses."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_crashed_and_nothing_was_lost() -> None:
    result = json.loads((ROOT / "studies/results/tries.json").read_text(encoding="utf-8"))
    assert sum(row["tries"] for row in result["rows"]) >= 2000
    for row in result["rows"]:
        assert row["refused"] + row["unharmed"] == row["tries"], row
    assert result["failures"] == []


def test_the_page_shows_the_results() -> None:
    printed = subprocess.run(
        [sys.executable, "studies/tries.py", "report"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() in (ROOT / "docs/trust.md").read_text(encoding="utf-8")
