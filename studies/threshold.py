"""Does the threshold hold? False alarms and misses by part, rule and number of calibration images.

    python studies/threshold.py --root drawings --photographs FOLDER

Trains preset small with the composition branch on a development seed of SyntheticLOCO and on photographs, MVTec LOCO
AD's juice_bottle in FOLDER, where the good test images were taken at another time than the training images. Then each
part's scores are calibrated anew on 200 random subsets of 5 and of 10 calibration images, and on all of them; a subset
gives the statistics of the maps, those of the scores and the threshold, as in the model. Values are per cent.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _common import Row, options
from _drawn import DEFAULTS, PHOTOGRAPHS, collect, composition_model, data_of, long
from torch import Tensor

from anomalib_npgmf.merging.rule import BRANCHES
from anomalib_npgmf.merging.threshold import deviations

DRAWS = 200
SIZES = (5, 10, 0)  # 0: all calibration images
# false alarm rate of each rule; None: mean + 3 standard deviations
RATES: dict[str, float | None] = {"mean + 3 std": None, "1 in 100": 0.01, "1 in 200": 0.005, "1 in 741": 0.00135}


@torch.no_grad()
def maps_of_parts(
    args: argparse.Namespace, category: str, seed: int
) -> tuple[list[str], dict[str, Tensor], list[float]]:
    """Folder of every image, or ``calibration``; maps and cross-validation statistics as `part_scores` takes them."""
    data = data_of(args, category, seed)
    model = composition_model(data, seed, args.epochs)
    data.setup("test")
    net, kinds, kept = model.model, [], []
    for name, loader in (("", data.test_dataloader()), ("calibration", data.val_dataloader())):
        for batch in loader:
            kinds += [name or Path(path).parts[-2] for path in batch.image_path]
            maps = net.branch_maps(model.pre_processor(batch.image)).maps
            cell = {"composition_score": maps["composition_scores"].amax(dim=-1)}
            for branch in BRANCHES:
                plane = net.merger.resize(maps[branch]).double()
                cell[f"{branch} moments"] = torch.stack([plane.mean((1, 2, 3)), plane.square().mean((1, 2, 3))], 1)
                cell[branch] = net.merger.blur(plane.float())[:, 0]
            kept.append(cell)
    assert net.composition is not None
    return kinds, {key: torch.cat([c[key] for c in kept]) for key in kept[0]}, net.composition.cv_stats.tolist()


def part_scores(maps: Mapping[str, Tensor], subset: Tensor, cv_stats: list[float]) -> dict[str, Tensor]:
    """Image scores [N] of all images by part, calibrated on a subset as the model does it.

    Args:
        maps: Smoothed raw maps [N, H, W] of both branches, their mean and mean square [N, 2] before smoothing, and the
            composition scores [N].
        subset: Indices of the images to calibrate on.
        cv_stats: Count, mean and sum of squared differences of the cross-validated composition scores, see
            `CompositionMerger.calibrate`.
    """
    planes, found = {}, {}
    for branch in BRANCHES:
        mean, square = maps[f"{branch} moments"][subset].mean(0)
        planes[branch] = (maps[branch] - mean) / (square - mean**2).sqrt()
        found[branch] = planes[branch].amax((1, 2))
    merged = (planes["logical"] + 3 * planes["structural"]).amax((1, 2))
    found["eq. 11"] = merged
    composed = maps["composition_score"].double()
    own, (count, mean, squares) = composed[subset], cv_stats
    total = count + len(own)
    centre = (count * mean + own.sum()) / total
    squares += ((own - own.mean()) ** 2).sum() + count * len(own) / total * (mean - own.mean()) ** 2
    found["composition"] = (composed - centre) / (squares / (total - 1)).sqrt()
    score = (merged - merged[subset].mean()) / merged[subset].std()
    found["merged"] = score.maximum(found["composition"])
    return found


def measure(args: argparse.Namespace, category: str, seed: int) -> dict[str, dict[str, float]]:
    """Per cent of test images above the threshold by folder, for each part, rule and number of images."""
    kinds, maps, cv_stats = maps_of_parts(args, category, seed)
    calibration = torch.tensor([i for i, kind in enumerate(kinds) if kind == "calibration"])
    folders = {kind: torch.tensor([k == kind for k in kinds]) for kind in dict.fromkeys(kinds) if kind != "calibration"}
    rows: dict[str, dict[str, list[float]]] = {}
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        for _ in range(DRAWS if size else 1):
            order = torch.randperm(len(calibration), generator=generator)
            subset = calibration[order[: size or None]]
            for part, scores in part_scores(maps, subset, cv_stats).items():
                normal = scores[subset].double()
                for rule, rate in RATES.items():
                    k = 3.0 if rate is None else deviations(len(subset), rate)
                    above = scores > normal.mean() + k * normal.std()
                    cell = rows.setdefault(f"{part} | {rule} | {size or 'all'}", {})
                    for kind, chosen in folders.items():
                        cell.setdefault(kind, []).append(100 * above[chosen].double().mean().item())
    return {name: {kind: sum(v) / len(v) for kind, v in cell.items()} for name, cell in rows.items()}


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """By part, rule and number: false alarms, then logical and structural anomalies found."""
    found = long(cells)
    rows = []
    for name, of_name in found.groupby("name", sort=False):
        part, rule, count = str(name).split(" | ")
        row: Row = {"part": part, "threshold": rule, "calibration images": count}
        for title, chosen in (
            (PHOTOGRAPHS, of_name.category == PHOTOGRAPHS),
            ("drawn", of_name.category != PHOTOGRAPHS),
        ):
            means = of_name[chosen].groupby("column").value.mean()
            for kind in ("good", "logical_anomalies", "structural_anomalies"):
                if kind in means:
                    row[f"{title}: {kind.removesuffix('_anomalies')}"] = round(float(means[kind]), 1)
        rows.append(row)
    return rows


def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args = options(__doc__, epochs=12, root=Path, photographs=Path, seeds=[100], categories=categories)
    collect("threshold", args, table_rows, lambda category, seed: measure(args, category, seed), merged=True)


if __name__ == "__main__":
    main()
