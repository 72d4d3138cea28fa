"""Do the fast paths of the memory bank cost accuracy? The structural branch on drawn images, one feature pass for all.

    python studies/bank_accuracy.py --weights mobilenetv2_100.pth --root drawings

Image AUROC and AU-sPRO at 0.05 of the smoothed map, mean over the categories; mean and sample standard deviation over
seeds, and of the difference from the exact selection in float32, seed by seed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from _common import options, spread, table
from _drawn import DEFAULTS, KINDS, SIZE, DrawnCategory, backbone_of, scores, smoothed

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.structural import StructuralBranch, StructuralConfig

EXACT = "exact selection"
VARIANTS: dict[str, dict[str, Any]] = {
    EXACT: {"coreset_method": "exact"},
    "fast selection": {},
    "fast selection, float16 bank": {"bank_dtype": "float16"},
    "fast selection, reduced to 64 components": {"reduce_to": 64},
    "fast selection, reduced to 21 components": {"reduce_to": 21},
}
COLUMNS = [f"{metric} {kind}" for metric in ("AUROC", "sPRO") for kind in KINDS]


def evaluate(cell: DrawnCategory, change: dict[str, Any]) -> dict[str, float]:
    """AUROC and sPRO of the structural branch per kind of anomaly, in per cent."""
    levels = list(cell.features.values())
    torch.manual_seed(0)
    branch = StructuralBranch([m.shape[1] for m in levels], StructuralConfig(coreset_ratio=0.1, **change))
    branch.collect([m[cell.train] for m in levels], [f"{row:04d}" for row in cell.train])
    branch.finish()
    maps = torch.cat([branch([m[start : start + 8] for m in levels]) for start in range(0, len(cell.paths), 8)])
    maps = smoothed(maps, SIZE)
    return scores(cell.paths, maps.amax((1, 2, 3)), maps)


@torch.no_grad()
def main() -> None:
    args = options(__doc__, **DEFAULTS | {"seeds": [0, 1, 2], "threads": 2})
    backbone = backbone_of(args, (3, 4))
    found: list[dict[str, Any]] = []
    for seed in args.seeds:
        for category in args.categories:
            cell = DrawnCategory(args.root, category, seed, backbone)
            found += [{"bank": name, "seed": seed} | evaluate(cell, change) for name, change in VARIANTS.items()]
            print(f"seed {seed}, {category}", flush=True)
    means = pd.DataFrame(found).groupby(["bank", "seed"], sort=False)[COLUMNS].mean()
    rows = []
    for name in VARIANTS:
        row: dict[str, Any] = {"bank": name}
        for column, gaps in (means.loc[name] - means.loc[EXACT]).items():
            row[column] = spread(means.loc[name][column])
            row[f"{column}, difference"] = "" if name == EXACT else spread(gaps, "+")
        rows.append(row)
    per_seed = {name: means.loc[name].to_numpy().tolist() for name in VARIANTS}
    print(table(rows))
    write(args.out / "bank_accuracy.json", rows, per_seed=per_seed, seeds=args.seeds, categories=args.categories)


if __name__ == "__main__":
    main()
