"""The paper's tables: values as published, measured ones beside them, plans that fit the models."""

import importlib
import inspect
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from anomalib_npgmf.benchmark.plan import Cell, load_plan
from anomalib_npgmf.benchmark.record import write_record
from anomalib_npgmf.benchmark.weights import references
from anomalib_npgmf.config import resolve
from anomalib_npgmf.host.plugin import register

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from report_paper import _ABLATION, _CONTROLS, _MODELS, _PLANS, main, paper_values

PLANS = Path(__file__).parents[2] / "configs/plans"


def test_published_means_are_those_of_the_columns() -> None:
    """A slip of the pen in one of the numbers would show in the mean of its row."""
    values = paper_values()
    # rows of other methods whose printed mean is not that of their printed columns
    as_printed = {("mvtec_ad", "Patch SVDD", 0), ("mvtec_ad", "DifferNet", 0), ("btad", "S-T", 1)}
    checked = 0
    for name in ("loco", "mvtec_ad", "btad"):
        for method, row in values[name]["methods"].items():
            assert len(row) == len(values[name]["columns"])
            for part in range(2 if isinstance(row[0], str) else 1):
                texts = [str(value).split("/")[part] for value in row]
                if "-" in texts:
                    continue
                *columns, mean = map(float, texts)
                if (name, method, part) in as_printed:
                    continue
                assert fmean(columns) == pytest.approx(mean, abs=0.11), (name, method, part)
                checked += 1
    assert checked > 45


def test_published_limits_agree_with_the_categories() -> None:
    values = paper_values()
    by_limit, by_category = values["loco_limits"]["methods"], values["loco"]["methods"]
    assert {name: row[1] for name, row in by_limit.items()} == {name: row[-1] for name, row in by_category.items()}
    assert all(row == sorted(row) for row in by_limit.values())
    assert values["ablation"]["methods"]["both branches"][0] == by_category["NPGMF"][-1]


def write(folder: Path, plan: str, model: str, variant: str, category: str, value: float, seed: int = 0) -> None:
    kinds = {"logical": value - 0.1, "structural": value + 0.1, "mean": value}
    metrics = {"spro": {"0.05": kinds, "0.3": kinds}, "loco_auroc": kinds, "image_auroc": value, "pixel_auroc": 0.9}
    record: dict[str, Any] = {
        "status": "finished",
        "command": "",
        "started": "2026-01-02T03:04:05Z",
        "versions": {},
        "hardware": {"processor": "Abacus"},
        "metrics": {"merged": metrics, "logical": metrics, "1:3": metrics, "3:1": metrics | {"loco_auroc": {}}},
        "images": {name: {"merged": 1.0} for name in "abcd"},
        "training": {},
        "model": {"parameters": 5},
        "seconds": {"test": 0.2},
        "weights": {},
        "peak_memory": {},
    }
    write_record(folder / plan, Cell(model, variant, category, seed, "", {}, "", {}, {}), record)


def report(folder: Path) -> list[list[str]]:
    output = folder.parent / "paper.md"
    assert main([str(folder), "--output", str(output)]) == 0
    lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_nothing_measured(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    rows = report(folder)
    assert ["NPGMF", "paper", "64.9", "66.6", "75.5", "82.2", "89.6", "75.8"] in rows
    measured = [row for row in rows if row[1] == "measured"]
    assert len(measured) == 4 + 6 + 4 + 6
    assert all(set(row[2:]) == {""} for row in measured)
    assert ["both branches", "75.8", "", "98.3 / 98.6", ""] in rows
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert all(f"`{plan}`" in text.split("## Table I:")[0] for plan in _PLANS)


def test_measured_beside_published(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    categories = paper_values()["loco"]["columns"][:-1]
    for index, category in enumerate(categories):
        write(folder, "paper_loco", "npgmf", "default", category, 0.5 + 0.1 * index)
        write(folder, "paper_ablation_loco", "npgmf", "text", category, 0.61)
        write(folder, "paper_ablation_loco", "npgmf", "random", category, 0.62)
    write(folder, "paper_loco", "npgmf", "default", categories[0], 0.6, seed=1)
    write(folder, "paper_loco", "padim", "default", categories[1], 0.4)
    write(folder, "paper_btad", "npgmf", "default", "02", 0.75)
    rows = report(folder)
    measured = [row for row in rows if row[1] == "measured"]
    assert ["NPGMF", "measured", "55.0 ± 7.1", "60.0", "70.0", "80.0", "90.0", "70.0"] in measured
    assert ["PaDiM", "measured", "", "40.0", "", "", "", ""] in measured  # one category is no mean
    assert ["NPGMF", "measured", "", "70.0", "", "70.0", ""] in measured  # limits
    assert ["NPGMF", "measured", "", "75.0 / 90.0", "", ""] in measured
    assert ["logical branch, baseline+AGU", "60.5", "61.0", "96.9 / 93.0", ""] in rows
    assert ["baseline+random vector", "", "62.0", "", ""] in rows
    assert ["logical branch", "69.0", "60.0", "55.3", "80.0"] in rows
    assert ["structural branch", "54.1", "", "82.0", ""] in rows
    assert ["1 : 3 (default)", "75.8", "70.0", "85.9", "70.0"] in rows
    assert ["3 : 1", "", "70.0", "", ""] in rows


def test_efficiency_beside_published(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    published = ["arXiv 2506.18544", "logical branch", "256", "125", "", "21", "47", ""]
    assert published in report(folder)
    row = {"preset": "paper", "what": "whole model", "image_size": 512, "gflop": 451.04, "parameters_m": 499.4}
    row |= {"cpu_ms": 250.0, "bank_patches": 14336}
    made = {"torch": "2", "gpu": None, "cpu": "Abacus", "threads": 1}
    content = {"command": "python studies/efficiency.py", "environment": made, "rows": [row]}
    (folder / "efficiency.json").write_text(json.dumps(content))
    rows = report(folder)
    assert published in rows
    assert ["preset `paper`", "whole model", "512", "451.0", "499.4", "250", "4.00", "14336"] in rows
    assert "Abacus" in (tmp_path / "paper.md").read_text(encoding="utf-8")


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--output", str(tmp_path / "a.md")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def test_plans_have_what_the_tables_name() -> None:
    values = paper_values()
    for name, data in _PLANS.items():
        cells = load_plan(PLANS / f"{name}.yaml").cells
        assert {cell.category for cell in cells} == set(values[data]["columns"]) - {"mean"}
        assert len({cell.seed for cell in cells}) >= 3
        if "ablation" in name:
            rows = {*_ABLATION.values(), *_CONTROLS.values()}
            assert {(cell.model, cell.variant) for cell in cells} == rows
        else:
            assert {cell.model for cell in cells} == {_MODELS[m] for m in values[data]["methods"] if m in _MODELS} | {
                "npgmf"
            }


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_classes_take_the_arguments_of_the_plans(path: Path) -> None:
    register()
    for cell in load_plan(path).cells:
        for package, name, arguments in (
            ("anomalib.models", cell.model_class, cell.model_args),
            ("anomalib.data", cell.data_class, cell.data_args | {"root": cell.root}),
        ):
            inspect.signature(getattr(importlib.import_module(package), name)).bind(**arguments)
        assert references(cell.model_args) <= {"mobilenetv2_100"}
        if cell.model_class == "Npgmf":
            known = {"preset", "backbone", "logical_image_size", "structural_image_size", "branches", "text_prior"}
            resolve(cell.model_args["preset"], {k: v for k, v in cell.model_args.items() if k in known - {"preset"}})
