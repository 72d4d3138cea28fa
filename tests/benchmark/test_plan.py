"""Plans: what they expand to, and what is wrong with a wrong one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anomalib_npgmf.benchmark.plan import load_plan, parse_plan

PLANS = sorted((Path(__file__).parents[2] / "configs" / "plans").glob("*.yaml"))


def content(**changes: Any) -> dict[str, Any]:
    data = {"root": "images/{seed}/{category}", "seed": "{seed}", "category": "{category}", "num_train": 4}
    return {
        "data": {"class_path": "SyntheticLOCO", "init_args": data},
        "categories": ["cable_pairs", "filled_vials"],
        "seeds": [3, 4],
        "trainer": {"max_epochs": 5, "gradient_clip_val": 1.0},
        "models": {
            "npgmf": {
                "class_path": "Npgmf",
                "init_args": {"preset": "small", "logical": {"code_dim": 8, "window": 4}},
                "variants": {"full": {}, "fine": {"logical": {"code_dim": 32}}},
            },
            "patchcore": {"class_path": "Patchcore", "trainer": {"max_epochs": 1}, "data": {"num_train": 2}},
        },
    } | changes


def test_cells() -> None:
    cells = {cell.key: cell for cell in parse_plan("p", content()).cells}
    assert len(cells) == (2 + 1) * 2 * 2
    fine = cells["npgmf/fine/filled_vials/seed4"]
    assert fine.root == "images/4/filled_vials"
    assert fine.data_args == {"seed": 4, "category": "filled_vials", "num_train": 4}
    assert fine.model_args == {"preset": "small", "logical": {"code_dim": 32, "window": 4}}
    assert cells["npgmf/full/filled_vials/seed4"].model_args["logical"]["code_dim"] == 8
    other = cells["patchcore/default/cable_pairs/seed3"]
    assert other.trainer == {"max_epochs": 1, "gradient_clip_val": 1.0}
    assert other.data_args["num_train"] == 2


def test_overrides() -> None:
    plan = parse_plan("p", content(), root="elsewhere/{seed}", epochs=7)
    assert {cell.root for cell in plan.cells} == {"elsewhere/3", "elsewhere/4"}
    assert {cell.trainer["max_epochs"] for cell in plan.cells} == {7}


def test_select() -> None:
    plan = parse_plan("p", content())
    assert [cell.key for cell in plan.select(["*/fine/*/seed3", "npgmf/fine/cable_pairs/*"]).cells] == [
        "npgmf/fine/cable_pairs/seed3",
        "npgmf/fine/cable_pairs/seed4",
        "npgmf/fine/filled_vials/seed3",
    ]
    assert plan.select([]) == plan
    with pytest.raises(ValueError, match="No cell of plan p fits 'padim"):
        plan.select(["npgmf/*", "padim/*"])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ([], "The plan p must be a mapping"),
        (content(epochs=3), "unknown key 'epochs'"),
        ({key: value for key, value in content().items() if key != "seeds"}, "lacks 'seeds'"),
        (content(seeds=[]), "needs seeds"),
        (content(categories="cable_pairs"), "needs categories"),
        (content(categories=[1]), "1 cannot name"),
        (content(categories=["../up"]), "cannot name"),
        (content(models={}), "needs models"),
        (content(models={"m": {"init_args": {}}}), "model m lacks 'class_path'"),
        (content(models={"m": {"class_path": "Npgmf", "args": {}}}), "unknown key 'args'"),
    ],
)
def test_wrong_plans(wrong: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_plan("p", wrong)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no plan"):
        load_plan(tmp_path / "none.yaml")
    (tmp_path / "plan.yaml").write_text("data: [", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_the_project(path: Path) -> None:
    cells = load_plan(path).cells
    assert len({cell.key for cell in cells}) == len(cells)


def test_synthetic_plan_covers_five_categories_with_three_seeds_for_images_and_model_alike() -> None:
    cells = load_plan(PLANS[0].with_name("synthetic.yaml")).cells
    counts = Counter((cell.model, cell.variant) for cell in cells)
    assert set(counts.values()) == {15}
    assert "npgmf" in {cell.model for cell in cells}
    assert len({cell.root for cell in cells}) == 3
    assert all(cell.data_args["seed"] == cell.seed and str(cell.seed) in str(cell.root) for cell in cells)
