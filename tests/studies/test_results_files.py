"""Results files of the studies: what is not measured again, not mixed, missing, or of several seeds."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import _common
import _drawn
from _common import MADE_BY, RESULTS, load, measured, records
from _drawn import collect


def arguments(out: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"out": out, "categories": ["a", "b"], "seeds": [100], "epochs": 3} | changes)


def run(out: Path, **changes: Any) -> list[str]:
    """Collect cells; names of those that were measured."""
    done: list[str] = []

    def measure(category: str, seed: int) -> Any:
        done.append(f"{category}/{seed}")
        return {"variant": {"AUROC": 50.0}}

    collect("study", arguments(out, **changes), lambda cells: [{"cells": len(cells)}], measure, merged=True)
    return done


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    assert run(tmp_path) == ["a/100", "b/100"]
    assert run(tmp_path, seeds=[100, 101]) == ["a/101", "b/101"]
    assert load("study", tmp_path)["rows"] == [{"cells": 4}]


def test_cells_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(SystemExit, match=r"study\.json was measured with .*'epochs': 3.*not .*'epochs': 5"):
        run(tmp_path, seeds=[101], epochs=5)
    assert (tmp_path / "study.json").read_bytes() == before


def test_cells_of_another_composition_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(_drawn.composition, "CELL_WEIGHT", 99.0)
    with pytest.raises(SystemExit, match=r"composition.*99"):
        run(tmp_path, seeds=[101])


def test_what_is_missing_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"There is no .*coreset\.json; `python studies/bank\.py coreset` makes it"):
        measured("coreset", tmp_path)
    with pytest.raises(SystemExit, match=r"python studies/threshold\.py"):
        measured("threshold", tmp_path)
    monkeypatch.setattr(_common, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"benchmark run configs/plans/photographs\.yaml --output"):
        records("photographs")


def test_every_results_file_has_its_script() -> None:
    studies = RESULTS.parent
    for path in RESULTS.glob("*.json"):
        script, *part = MADE_BY.get(path.stem, f"{path.stem}.py").split()
        text = (studies / script).read_text(encoding="utf-8")
        assert path.stem in text
        assert all(f"def {name}(" in text for name in part)
