"""Which rule merges the parts' maps: what `anomalib_npgmf.merging.rule` owes to its choices.

    python studies/merging_study.py --weights mobilenetv2_100.pth --root drawings

Trains preset small on drawn images with both branches and the composition read-out, logical branch at 128 px, the rest
at 256 px, and merges the raw maps of the test images by every rule. Statistics
come from normal images alone, as in the model. The seeds are not those of the reported benchmark: the rule and
the margin of the composition were chosen with this study. A cell, a category and a seed, that is in the results file is
not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _common import Row, load, options
from _drawn import DEFAULTS, KINDS, collect, fit, long, scores
from lightning.pytorch import seed_everything
from torch import Tensor

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.merging.rule import CompositionMerger

PARTS = ("logical", "structural", "composition")
MARGINS = (0.0, 0.25, 0.5, 0.75, 1.0)
Maps = dict[str, Tensor]


def train(args: argparse.Namespace, category: str, seed: int) -> tuple[list[Path], Maps]:
    """Train; paths of the test images, and maps of the parts as they are merged, of test and calibration images."""
    seed_everything(seed, workers=True, verbose=False)
    counts = {f"num_test_{kind}": 60 for kind in ("good", *KINDS)}
    root = args.root / f"seed{seed}"
    data = SyntheticLOCO(root, category, 256, num_train=60, **counts, train_batch_size=4, seed=seed)
    sizes = {"logical_image_size": 128, "structural_image_size": 256}
    without: dict[str, Any] = dict.fromkeys(("post_processor", "evaluator", "visualizer"), False)
    backbone = {"backbone": args.backbone, "backbone_weights": args.weights}
    model = Npgmf(preset="small", **backbone, **sizes, composition=True, **without)
    fit(model, data, max_epochs=args.epochs)
    data.setup("test")
    net, paths = model.model, []
    found = {"held_out": net.composition.cv_stats}
    for prefix, loader in (("", data.test_dataloader()), ("cal_", data.val_dataloader())):
        kept: dict[str, list[Tensor]] = {part: [] for part in PARTS}
        for batch in loader:
            paths += [Path(path) for path in batch.image_path if prefix == ""]
            with torch.no_grad():
                maps = net.branch_maps(model.pre_processor(batch.image)).maps
            for part in PARTS[:2]:
                kept[part].append(net.merger.smoothed({part: maps[part]})[part])
            kept["composition"].append(net.merger.resize(maps["composition"]))
        found |= {prefix + part: torch.cat(values) for part, values in kept.items()}
    return paths, found


def statistics(kept: Maps, normal: Tensor, *, cross_validated: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the image scores of normal maps, as the model takes them."""
    merger, peaks = CompositionMerger(), normal.amax((1, 2, 3))
    merger.calibrate(peaks, peaks, kept["held_out"] if cross_validated else None)
    return merger.mean[1], merger.std[1]


def rules(kept: Maps) -> Maps:
    """Merged maps of the test images, [N, 1, H, W], by rule."""

    def parts(prefix: str) -> Maps:
        single = {part: kept[prefix + part] for part in PARTS}
        logical, structural, _ = single.values()
        return {**single, "sum": logical + 3 * structural, "maximum": torch.maximum(logical, structural)}

    unit, normal = {}, parts("cal_")
    for name, values in parts("").items():
        mean, std = statistics(kept, normal[name], cross_validated=name == "composition")
        unit[name] = (values - mean) / std
    c = unit["composition"]
    found: Maps = {
        "logical branch": unit["logical"],
        "structural branch": unit["structural"],
        "composition": c,
        "sum (eq. 11)": unit["sum"],
        "maximum": unit["maximum"],
    }
    for name in ("sum", "maximum"):
        for margin in MARGINS:
            found[f"larger of {name} and composition - {margin}"] = torch.maximum(unit[name], c - margin)
        found[f"{name} + positive part of composition"] = unit[name] + c.relu()
    three = torch.maximum(unit["structural"], c - 0.5)
    for margin in (0.0, 0.5, 1.0):
        merged = torch.maximum(three, unit["logical"] - margin)
        found[f"largest of structural, logical - {margin}, composition - 0.5"] = merged
    return found


def spreads(paths: list[Path], kept: Maps) -> dict[str, float]:
    """Standard deviation of a normal image's composition distance, from three sources."""
    normal = kept["cal_composition"]
    good = kept["composition"][[path.parent.name == "good" for path in paths]]
    return {
        "calibration images": statistics(kept, normal, cross_validated=False)[1].item(),
        "with cross-validation": statistics(kept, normal, cross_validated=True)[1].item(),
        "good test images": good.amax((1, 2, 3)).std().item(),
    }


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """Image AUROC per category, logical / structural, mean over its seeds (their number); then means of categories."""
    found = long(cells)
    seeds = found.groupby("category", sort=False).seed.nunique()
    means = found.pivot_table("value", ["name", "category"], "column", sort=False)
    shown = means[[f"AUROC {kind}" for kind in KINDS]].map("{:.1f}".format).agg(" / ".join, axis="columns")
    wide = shown.unstack("category").reindex(found.name.unique())[seeds.index]
    wide.columns = [f"{category} ({number})" for category, number in seeds.items()]
    overall = means.groupby("name").mean().map("{:.1f}".format)
    return wide.join(overall).rename_axis("rule").reset_index().to_dict("records")


def main() -> None:
    args = options(__doc__, epochs=30, **DEFAULTS)
    found = load("merging_study", args.out).get("spreads", {})

    def measure(category: str, seed: int) -> dict[str, dict[str, float]]:
        paths, kept = train(args, category, seed)
        found[f"{category}/{seed}"] = spreads(paths, kept)
        return {name: scores(paths, merged.amax((1, 2, 3)), merged) for name, merged in rules(kept).items()}

    collect("merging_study", args, table_rows, measure, spreads=found)


if __name__ == "__main__":
    main()
