"""The learning curve: which images are trained on, and the table of the cells."""

import argparse
import sys
from pathlib import Path

import pytest
from lightning.pytorch.trainer.states import TrainerFn

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import learning_curve
from learning_curve import frame, subset_of, table_rows

COLUMNS = {"AUROC logical": 90.0, "false alarms": 5.0}
CELLS = {
    "juice_bottle 15/100": {"merged": COLUMNS | {"seconds": 200.0}},
    "juice_bottle 300/100": {"merged": COLUMNS, "logical": COLUMNS},
    "loose_screws 300/100": {"merged": COLUMNS | {"AUROC structural": 70.0}},
    "sorting_tray 300/100": {"merged": {"AUROC logical": 80.0, "false alarms": 0.0, "AUROC structural": 80.0}},
}


def test_drawn_categories_are_averaged_and_photographs_stand_apart() -> None:
    rows = {(row["data"], row["images"], row["part"]): row for row in table_rows(CELLS)}
    photographs = {("juice_bottle", 15, "merged"), ("juice_bottle", 300, "merged"), ("juice_bottle", 300, "logical")}
    assert set(rows) == {*photographs, ("drawn", 300, "merged")}
    assert rows["drawn", 300, "merged"]["AUROC logical"] == pytest.approx(85.0)
    assert rows["drawn", 300, "merged"]["false alarms"] == pytest.approx(2.5)
    assert rows["juice_bottle", 15, "merged"]["minutes"] == pytest.approx(3.3)
    assert rows["juice_bottle", 15, "merged"]["AUROC structural"] == ""
    assert len(frame(CELLS)) == 3 + 2 + 2 + 3 + 3


def test_a_subset_is_random_and_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "COUNTS", (2, 6))
    args = argparse.Namespace(root=tmp_path)

    def chosen(count: int, seed: int) -> list[str]:
        data = subset_of(args, "loose_screws", seed, count)
        data.setup(TrainerFn.FITTING)  # as the trainer does; it keeps the subset
        paths = [Path(path) for path in data.train_data.samples.image_path]
        assert all(path.parts[-3:-1] == ("train", "good") for path in paths)
        batches = [path for batch in data.train_dataloader() for path in batch.image_path]
        assert sorted(batches) == sorted(map(str, paths))
        return [path.name for path in paths]

    every, two = chosen(6, 0), chosen(2, 0)
    assert len(every) == len(set(every)) == 6
    assert len(set(two)) == 2
    assert two == chosen(2, 0)
    assert sorted(chosen(9, 0)) == sorted(every)
    assert two != sorted(every)[:2] or chosen(2, 1) != sorted(every)[:2], "not simply the first ones"
