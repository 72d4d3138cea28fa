"""Ablation of two choices in the logical branch: dilations by the size of the map, and a rectified embedding.

    python studies/logical_study.py --weights mobilenetv2_100.pth --root drawings

Trains the logical branch alone, with the settings of preset small on MobileNetV2, on features from one backbone pass,
with a development seed of SyntheticLOCO, which no benchmark uses, and three seeds of training each. A cell (a category
with a seed) that is in the results file is not measured again; a file that names no settings is not extended.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import torch
from _common import Row, options
from _drawn import DEFAULTS, Cells, DrawnCategory, backbone_of, collect, long, scores, smoothed, train_logical

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.config import resolve
from anomalib_npgmf.logical.model import LogicalBranch

# side of the images in pixels, changes of the settings
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "128 px, dilations by level": (128, {"dilations": "level", "rectify_embedding": False}),
    "128 px, dilations by map": (128, {"dilations": "map", "rectify_embedding": False}),
    "128 px, dilations by map, rectified embedding": (128, {"dilations": "map", "rectify_embedding": True}),
    "256 px": (256, {"rectify_embedding": False}),
    "256 px, rectified embedding": (256, {"rectify_embedding": True}),
}
INITIAL_IMAGES = 32


def evaluate(
    cell: DrawnCategory, backbone: Backbone, side: int, change: dict[str, Any], seed: int, epochs: int
) -> dict[str, float]:
    """Train a branch; its AUROC and sPRO per kind of anomaly, in per cent."""
    torch.manual_seed(seed)
    settings = resolve("small", {"backbone": backbone.name, "logical_image_size": side}, change)
    size = settings.logical_image_size
    branch = LogicalBranch(
        backbone.levels, backbone.channels, backbone.rectified(), size, settings.text_prior, config=settings.logical
    )
    train = torch.tensor(cell.train)
    drawn = train[torch.randperm(len(train))[:INITIAL_IMAGES]]
    branch.initialise([cell.features[level][drawn] for level in branch.levels])
    features = branch.standardise([cell.features[level] for level in branch.levels])
    train_logical(branch, [level[train] for level in features], cell.images[train], epochs, settings.learning_rate)
    maps = []
    for start in range(0, len(cell.paths), 8):
        part = [level[start : start + 8] for level in features]
        maps.append(branch.anomaly_map(part, branch(part, reconstruct=False)))
    found = smoothed(torch.cat(maps), size)
    return scores(cell.paths, found.amax((1, 2, 3)), found)


def rows_of(cells: Cells) -> list[Row]:
    """Mean over categories; mean and sample standard deviation over training seeds, and of the gain seed by seed."""
    frame = long(cells)
    names = frame.name.str.rsplit(", seed ", n=1, expand=True)
    frame = frame.assign(variant=names[0], run=names[1])
    means: pd.DataFrame = frame.pivot_table("value", ["variant", "run"], "column")
    rows = []
    for name in VARIANTS:
        row: Row = {"variant": name}
        first = next(other for other in VARIANTS if other.startswith(name[:3]))
        for column in ("AUROC mean", "sPRO mean"):
            values = means.loc[name][column]
            row[column] = spread(values, scale=1)
            gain = values - means.loc[first][column]
            row[f"{column}, gain"] = "" if name == first else spread(gain, signed=True, scale=1)
        rows.append(row)
    return rows


@torch.no_grad()
def main() -> None:
    args: argparse.Namespace = options(__doc__, **DEFAULTS | {"seeds": [100], "runs": 3, "epochs": 12})
    backbone = backbone_of(args)

    def measure(category: str, seed: int) -> dict[str, dict[str, float]]:
        sides = {side for side, _ in VARIANTS.values()}
        drawn = {s: DrawnCategory(args.root, category, seed, backbone, (s, s)) for s in sides}
        return {
            f"{name}, seed {run}": evaluate(drawn[side], backbone, side, change, run, args.epochs)
            for name, (side, change) in VARIANTS.items()
            for run in range(args.runs)
        }

    collect("logical_study", args, rows_of, measure, runs=args.runs, epochs=args.epochs)


if __name__ == "__main__":
    main()
