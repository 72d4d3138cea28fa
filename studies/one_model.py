"""One logical branch for several categories: does it matter whether the text prior tells them apart?

    python studies/one_model.py --weights mobilenetv2_100.pth --root drawings

Three ways to train the logical branch at 128 px, with the settings of preset small on MobileNetV2, with the same number
of passes over every image: one branch per category, one for all categories with a vector per category instead of its
text embedding, and one for all with the same vector everywhere. The vectors are random and of unit length: for a
handful of fixed categories the linear layer behind them turns them into any others, CLIP's embeddings among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import Row, options, save
from _drawn import BATCH, DEFAULTS, KINDS, DrawnCategory, backbone_of, long, scores, smoothed, train_logical
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.config import PRESETS
from anomalib_npgmf.logical.model import LogicalBranch

SIZE = (128, 128)
ALONE, OWN, SAME = ("one per category", "one for all, a vector per category", "one for all, the same vector")
COLUMNS = [f"{metric} {kind}" for metric in ("AUROC", "sPRO") for kind in (*KINDS, "mean")]


def train(
    categories: Mapping[str, DrawnCategory], vectors: Mapping[str, Tensor], backbone: Backbone, epochs: int, seed: int
) -> LogicalBranch:
    """Train one branch on the training images of all given categories, as `Npgmf` does: Adam, clipped gradients."""
    torch.manual_seed(seed)
    settings = PRESETS["small"]
    branch = LogicalBranch(
        backbone.levels, backbone.channels, backbone.rectified(), SIZE, "random", 512, settings.logical
    )
    cells = list(categories.values())
    features = [torch.cat([cell.features[level][cell.train] for cell in cells]) for level in backbone.levels]
    images = torch.cat([cell.images[cell.train] for cell in cells])
    texts = torch.cat([vectors[name].expand(len(cell.train), -1) for name, cell in categories.items()])
    first = torch.randperm(len(images))[:64]
    branch.initialise([level[first] for level in features])
    features = branch.standardise(features)
    return train_logical(branch, features, images, epochs, settings.learning_rate, texts)


@torch.no_grad()
def test(branch: LogicalBranch, cell: DrawnCategory, vector: Tensor) -> dict[str, float]:
    """Image AUROC and AU-sPRO at 0.05 of the smoothed map, in per cent."""
    maps = []
    for chosen in torch.arange(len(cell.paths)).split(BATCH):
        features = branch.standardise([level[chosen] for level in cell.features.values()])
        output = branch(features, reconstruct=False, embedding=vector.expand(len(chosen), -1))
        maps.append(smoothed(branch.anomaly_map(features, output), SIZE))
    merged = torch.cat(maps)
    return scores(cell.paths, merged.amax((1, 2, 3)), merged)


def embeddings(categories: list[str], seed: int) -> dict[str, Tensor]:
    """A unit vector per category."""
    generator = torch.Generator().manual_seed(seed)
    return {name: F.normalize(torch.randn(512, generator=generator), dim=0) for name in categories}


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """Mean and sample standard deviation over seeds, of the mean over categories and of every category."""
    wide = long(cells).pivot(index=["category", "seed"], columns=["name", "column"], values="value")
    categories = list(dict.fromkeys(key.split("/")[0] for key in cells))
    complete = wide.groupby("seed").filter(lambda seed: len(seed) == len(categories))
    rows: list[Row] = []
    for category in ("mean", *categories):
        values = complete.groupby("seed").mean() if category == "mean" else wide.loc[category]
        for arm in (ALONE, OWN, SAME):
            spreads = {column: spread(values[arm][column], scale=1) for column in COLUMNS}
            rows.append({"category": category, "logical branch": arm} | spreads)
    for other in (ALONE, SAME):
        gaps = (complete[OWN] - complete[other]).groupby("seed").mean()
        row = {"category": "mean, seed by seed", "logical branch": f"a vector per category less {other}"}
        rows.append(row | {column: spread(gaps[column], signed=True, scale=1) for column in COLUMNS})
    return rows


def measure(args: argparse.Namespace, backbone: Backbone, seed: int) -> dict[str, Row]:
    """Train and test in the three ways; metrics by category."""
    drawn = {name: DrawnCategory(args.root, name, seed, backbone, SIZE) for name in args.categories}
    own = embeddings(args.categories, seed)
    same = dict.fromkeys(own, next(iter(own.values())))
    found: dict[str, Row] = {name: {} for name in drawn}
    for arm, vectors in ((ALONE, own), (OWN, own), (SAME, same)):
        for group in [{name: cell} for name, cell in drawn.items()] if arm == ALONE else [drawn]:
            branch = train(group, vectors, backbone, args.epochs, seed)
            for name, cell in group.items():
                found[name][arm] = test(branch, cell, vectors[name])
    return found


def main() -> None:
    own_defaults = {"seeds": [0, 1, 2], "root": Path("datasets/SyntheticLOCO"), "epochs": 30}
    args = options(__doc__, **DEFAULTS | own_defaults)
    backbone = backbone_of(args)
    cells: dict[str, Row] = {}
    for seed in args.seeds:
        cells |= {f"{name}/seed{seed}": cell for name, cell in measure(args, backbone, seed).items()}
        save(args.out / "one_model.json", table_rows(cells), cells=cells, epochs=args.epochs)


if __name__ == "__main__":
    main()
