"""Do the fast paths of the memory bank cost accuracy? The structural branch on drawn images, one feature pass for all.

    python studies/bank_accuracy.py --weights mobilenetv2_100.pth --root drawings

Image AUROC and AU-sPRO at 0.05 of the smoothed map, mean over the categories; mean and sample standard deviation over
seeds, and of the difference from the exact selection in float32, seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from _common import fix_threads, print_table, save
from _drawn import KINDS, SIZE, DrawnCategory, spread

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.structural import StructuralBranch, StructuralConfig

LEVELS = (3, 4)
VARIANTS: dict[str, dict[str, Any]] = {
    "exact selection": {"coreset_method": "exact"},
    "fast selection": {},
    "fast selection, float16 bank": {"bank_dtype": "float16"},
    "fast selection, reduced to 64 components": {"reduce_to": 64},
    "fast selection, reduced to 21 components": {"reduce_to": 21},
}
COLUMNS = [f"{metric} {kind}" for metric in ("AUROC", "sPRO") for kind in KINDS]


def scores(cell: DrawnCategory, change: dict[str, Any]) -> list[float]:
    """AUROC and sPRO of the structural branch per type of anomaly, in per cent."""
    levels = [cell.features[level] for level in LEVELS]
    torch.manual_seed(0)
    branch = StructuralBranch([m.shape[1] for m in levels], StructuralConfig(coreset_ratio=0.1, **change))
    keys = [f"{row:04d}" for row in cell.rows["train"]]
    branch.collect([m[cell.rows["train"]] for m in levels], keys)
    branch.finish()
    maps = torch.cat([branch([m[start : start + 8] for m in levels]) for start in range(0, len(cell.paths), 8)])
    merger = MapMerger(SIZE, 1.0, 3.0)
    merger.calibrate({"structural": (0.0, 1.0)})  # a scale changes neither metric
    merged = merger({"structural": maps})
    areas = cell.auroc(merged.amax((1, 2, 3))), cell.spro(merged)
    return [100 * area[kind] for area in areas for kind in KINDS]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="weights file of the backbone, or 'random'")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--root", type=Path, required=True, help="folder for the drawn images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--categories", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    fix_threads(arguments.threads)
    backbone = Backbone(arguments.backbone, LEVELS)
    backbone.load_weights(arguments.weights)
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}  # variant -> seed -> column
    for seed in arguments.seeds:
        per_category: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
        for category in arguments.categories:
            plan = DrawingPlan(category, SIZE, 60, 20, 20, 20, 20, seed)
            cell = DrawnCategory(ensure_drawn(arguments.root / f"seed{seed}", plan), backbone)
            for name, change in VARIANTS.items():
                per_category[name].append(scores(cell, change))
            print(f"seed {seed}, {category}", flush=True)
        for name, rows in per_category.items():
            found[name].append([statistics.mean(column) for column in zip(*rows, strict=True)])
    reference = found["exact selection"]
    results = []
    for name, seeds in found.items():
        row: dict[str, Any] = {"bank": name}
        for index, column in enumerate(COLUMNS):
            values = [seed[index] for seed in seeds]
            gaps = [a[index] - b[index] for a, b in zip(seeds, reference, strict=True)]
            row[column] = spread(values)
            row[f"{column}, difference"] = "" if name == "exact selection" else spread(gaps, sign="+")
        results.append(row)
    print_table(results)
    save("bank_accuracy", results, per_seed=found, seeds=arguments.seeds, categories=arguments.categories)


if __name__ == "__main__":
    main()
