"""How many normal images does training need? Accuracy, false alarms and time by the number of training images.

    python studies/learning_curve.py measure --root drawings --photographs FOLDER
    python studies/learning_curve.py draw                 # docs/images/learning_curve.png from the results file

Trains preset small with the composition branch on random subsets of the 300 training images of a drawn category, on a
development seed of SyntheticLOCO, and of MVTec LOCO AD's juice_bottle in FOLDER. Calibration and test images stay the
same (20 and 33 calibration images). Small subsets are trained for more than ``--epochs``, so that all of them get at
least the gradient steps of 60 images. False alarms are good test images above the default threshold. Values are per
cent; minutes are those of building and fitting the model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _common import ROOT, Row, measured, run_part
from _drawn import PHOTOGRAPHS, collect, composition_model, data_of, long, scores
from anomalib.data import AnomalibDataModule
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor

from anomalib_npgmf import Npgmf
from anomalib_npgmf.benchmark.evaluate import merged_by_other_rules
from anomalib_npgmf.host.post_processor import FALSE_ALARM_RATE
from anomalib_npgmf.merging.threshold import deviations
from anomalib_npgmf.torch_model import PARTS

COUNTS = (15, 30, 60, 120, 300)
STEPS_OF = 60  # every subset gets at least as many gradient steps as so many images would
MERGED, SUM = "merged", "1:3"
FIGURE = ROOT / "docs" / "images" / "learning_curve.png"
COLUMNS = {
    "AUROC logical": "image AUROC, logical (%)",
    "AUROC structural": "image AUROC, structural (%)",
    "sPRO mean": "sPRO@0.05, mean of the types (%)",
}
LABELS = {"logical": "logical branch", "structural": "structural branch", "composition": "composition", MERGED: MERGED}


def subset_of(args: argparse.Namespace, category: str, seed: int, count: int) -> AnomalibDataModule:
    """The images of a category with a random subset of the training images."""
    data = data_of(args, category, seed, COUNTS[-1])
    data.prepare_data()
    data.setup(TrainerFn.FITTING)  # without a stage, the trainer would set the data up again, with all images
    samples = data.train_data.samples
    data.train_data.samples = samples.sample(min(count, len(samples)), random_state=seed).reset_index(drop=True)
    return data


@torch.no_grad()
def predicted(model: Npgmf, loader: Any) -> tuple[list[Path], dict[str, tuple[Tensor, Tensor]]]:
    """Paths, and image scores [N] and maps [N, 1, H, W] by part."""
    net, paths = model.model, []
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in loader:
        paths += [Path(path) for path in batch.image_path]
        found = net.branch_maps(model.pre_processor(batch.image))
        for part in (*PARTS, MERGED):
            merged = net.merge(found.maps if part == MERGED else found.alone(part))
            kept.setdefault(part, []).append((merged.pred_score, merged.anomaly_map))
        eq11 = merged_by_other_rules(net.merger, found.maps)[SUM]
        kept.setdefault(SUM, []).append((eq11.amax((1, 2, 3)), eq11))
    return paths, {part: (torch.cat([s for s, _ in v]), torch.cat([m for _, m in v])) for part, v in kept.items()}


def measure_one(args: argparse.Namespace, category: str, seed: int, count: int) -> dict[str, dict[str, float]]:
    """Metrics of every part after a training on ``count`` images."""
    data = subset_of(args, category, seed, count)
    epochs = max(args.epochs, math.ceil(args.epochs * STEPS_OF / len(data.train_data)))
    start = time.perf_counter()
    model = composition_model(data, seed, epochs)
    seconds = time.perf_counter() - start
    (paths, test), (_, calibration) = predicted(model, data.test_dataloader()), predicted(model, data.val_dataloader())
    good = torch.tensor([path.parts[-2] == "good" for path in paths])
    found = {}
    for part, (values, maps) in test.items():
        normal = calibration[part][0].double()
        above = values > normal.mean() + deviations(len(normal), FALSE_ALARM_RATE) * normal.std()
        rates = {"false alarms": above[good], "found": above[~good]}
        found[part] = scores(paths, values, maps) | {
            name: 100 * share.double().mean().item() for name, share in rates.items()
        }
    found[MERGED] |= {"seconds": seconds}
    return found


def frame(cells: Mapping[str, Any]) -> pd.DataFrame:
    """Long table, ``name`` is the part, with ``images``, their number, and ``data``: the photographs or "drawn"."""
    found = long(cells)
    found[["category", "images"]] = found.category.str.split(" ", expand=True)
    found["images"] = found.images.astype(int)
    found["data"] = found.category.where(found.category == PHOTOGRAPHS, "drawn")
    return found


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """One row for data, number of images and part; the drawn categories' mean."""
    found = frame(cells)
    wide = found.groupby(["data", "images", "name", "column"], sort=False).value.mean().unstack("column")
    wide["minutes"] = wide.pop("seconds") / 60
    order = [column for column in (*COLUMNS, "sPRO logical", "false alarms", "found", "minutes") if column in wide]
    rounded = wide[order].round(1).astype(object)
    rows = rounded.where(rounded.notna(), "").rename_axis(["data", "images", "part"]).reset_index()
    return rows.sort_values(["data", "images"], kind="stable").to_dict("records")


def measure(args: argparse.Namespace) -> None:
    """Measure every category and number, and write the results file after each."""

    def cell(category: str, seed: int) -> dict[str, dict[str, float]]:
        name, count = category.split()
        return measure_one(args, name, seed, int(count))

    args.categories = [f"{category} {count}" for count, category in product(args.counts, args.categories)]
    collect("learning_curve", args, table_rows, cell, merged=True)


def draw(args: argparse.Namespace) -> None:
    """Draw the figure: image AUROC and sPRO of each part against the number of training images."""
    found = frame(measured("learning_curve", args.out)["cells"])
    figure = Figure(figsize=(10, 5), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, squeeze=False)
    for axes_row, (name, data) in zip(grid, found.groupby("data"), strict=False):
        for axes, (column, title) in zip(axes_row, COLUMNS.items(), strict=True):
            shown = column if name != PHOTOGRAPHS or "mean" not in column else column.replace("mean", "logical")
            for part, label in LABELS.items():
                curve = data[(data.column == shown) & (data["name"] == part)].groupby("images").value.mean()
                if len(curve):
                    axes.plot(curve.index, curve, marker="o", markersize=3, label=label)
            axes.set_title(f"{name}: {title if shown == column else title.replace('mean of the types', 'logical')}")
            axes.title.set_fontsize(8)
            axes.set_xscale("log")
            axes.set_xticks(COUNTS, labels=map(str, COUNTS))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.set_visible(bool(axes.lines))  # juice_bottle has no structural anomalies
    for axes in grid[-1]:
        axes.set_xlabel("training images", fontsize=8)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    categories = ["sorting_tray", PHOTOGRAPHS]
    lists: dict[str, list[Any]] = {"seeds": [100], "categories": categories, "counts": list(COUNTS)}
    run_part(__doc__, measure, draw, epochs=12, root=Path, photographs=Path, **lists)


if __name__ == "__main__":
    main()
