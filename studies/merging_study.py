"""Which rule merges the parts' maps: what `anomalib_npgmf.merging.rule` owes to its choices.

    python studies/merging_study.py --weights mobilenetv2_100.pth --root drawings
    python studies/merging_study.py --table

Trains preset small on drawn images with both branches and the composition read-out, logical branch at 128 px, the rest
at 256 px, keeps the raw maps of calibration and test images below the root, and merges them by every rule. Statistics
come from normal images alone, as in the model. The seeds are not those of the reported benchmark: the rule and
the margin of the composition were chosen with this study. A cell, a category and a seed, that is in the results file is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, fix_threads, print_table, save
from _drawn import KINDS, GroundTruth
from lightning.pytorch import Callback, seed_everything
from torch import Tensor

from anomalib_npgmf.data.synthetic.writer import SCENES
from anomalib_npgmf.merging.rule import CompositionMerger, MapMerger

PARTS = ("logical", "structural", "composition")
MARGINS = (0.0, 0.25, 0.5, 0.75, 1.0)
Maps = dict[str, Tensor]


class _Keep(Callback):
    """Keeps the raw maps of a test pass."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.maps: dict[str, list[Tensor]] = {part: [] for part in PARTS}

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *others: Any) -> None:
        """Keep a batch."""
        del trainer, others
        self.paths += [str(path) for path in outputs.image_path]
        for part, kept in self.maps.items():
            kept.append(pl_module.model.merger.resize(pl_module.branch_maps.maps[part]))


def train(category: str, seed: int, root: Path, weights: str, file: Path) -> None:
    """Train, and write the raw maps at the merging size, with the statistics of eq. 11."""
    from anomalib.engine import Engine

    from anomalib_npgmf import Npgmf
    from anomalib_npgmf.data import SyntheticLOCO

    seed_everything(seed, workers=True, verbose=False)
    counts = {f"num_test_{kind}": 60 for kind in ("good", *KINDS)}
    data = SyntheticLOCO(root / f"seed{seed}", category, 256, num_train=60, **counts, train_batch_size=4, seed=seed)
    data.prepare_data()
    model = Npgmf(
        preset="small",
        backbone="mobilenetv2_100",
        backbone_weights=weights,
        logical_image_size=128,
        structural_image_size=256,
        composition=True,
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    keep = _Keep()
    with tempfile.TemporaryDirectory() as scratch:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        engine = Engine(max_epochs=30, devices=1, default_root_dir=scratch, callbacks=[keep], **quiet)
        engine.fit(model, datamodule=data)
        engine.test(model, datamodule=data, verbose=False)
    normal: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    with torch.no_grad():
        for batch in data.val_dataloader():
            maps = model.model.eval().branch_maps(model.pre_processor(batch.image), reconstruct=False).maps
            for part, kept in normal.items():
                kept.append(model.model.merger.resize(maps[part]))
    merger = model.model.merger
    content = {part: torch.cat(keep.maps[part]).half().numpy() for part in PARTS}
    content |= {f"cal_{part}": torch.cat(normal[part]).half().numpy() for part in PARTS}
    file.parent.mkdir(parents=True, exist_ok=True)
    assert model.model.composition is not None
    content["held_out"] = model.model.composition.held_out.numpy()
    np.savez_compressed(file, path=np.array(keep.paths), mean=merger.mean, std=merger.std, **content)


def rules(file: Path) -> Maps:
    """Merged maps of the test images, [N, 1, H, W], by rule."""
    with np.load(file) as content:
        kept = {name: content[name] for name in content.files}

    def smoothed(prefix: str) -> Maps:
        raw = {part: torch.from_numpy(kept[prefix + part]).float() for part in PARTS}
        merger = MapMerger(tuple(raw["logical"].shape[-2:]), maximum=True)
        merger.mean.copy_(torch.from_numpy(kept["mean"]))
        merger.std.copy_(torch.from_numpy(kept["std"]))
        z = merger.smoothed(raw)
        sums = {"sum": z["logical"] + 3 * z["structural"], "maximum": torch.maximum(z["logical"], z["structural"])}
        return z | sums | {"composition": raw["composition"]}

    unit = {}
    normal = smoothed("cal_")
    for name, values in smoothed("").items():
        calibrated = CompositionMerger()
        peaks = normal[name].amax((1, 2, 3))
        calibrated.calibrate(peaks, peaks, torch.from_numpy(kept["held_out"]) if name == "composition" else None)
        unit[name] = (values - calibrated.mean[1]) / calibrated.std[1]
    branches, c = {name: unit[name] for name in ("sum", "maximum")}, unit["composition"]
    found: Maps = {
        "logical branch": unit["logical"],
        "structural branch": unit["structural"],
        "composition": c,
        "sum (eq. 11)": unit["sum"],
        "maximum": unit["maximum"],
    }
    for name, s in branches.items():
        for margin in MARGINS:
            found[f"larger of {name} and composition - {margin}"] = torch.maximum(s, c - margin)
        found[f"{name} + positive part of composition"] = s + c.relu()
    three = torch.maximum(unit["structural"], c - 0.5)
    for margin in (0.0, 0.5, 1.0):
        merged = torch.maximum(three, unit["logical"] - margin)
        found[f"largest of structural, logical - {margin}, composition - 0.5"] = merged
    return found


def measure(file: Path) -> dict[str, dict[str, float]]:
    """Image AUROC and AU-sPRO at 0.05 by rule, in per cent."""
    with np.load(file) as content:
        truth = GroundTruth([Path(path) for path in content["path"].tolist()])
    found = {}
    for name, merged in rules(file).items():
        areas = {"AUROC": truth.auroc(merged.amax((1, 2, 3))), "sPRO": truth.spro(merged)}
        found[name] = {f"{metric} {kind}": 100 * v for metric, values in areas.items() for kind, v in values.items()}
    return found


def spreads(file: Path) -> dict[str, float]:
    """Deviation of a normal image's composition distance, from three sources."""
    with np.load(file) as content:
        kept = {name: content[name] for name in content.files}
    held_out = torch.from_numpy(kept["cal_composition"]).float().amax((1, 2, 3))
    alone, joined = CompositionMerger(), CompositionMerger()
    alone.calibrate(held_out, held_out)
    joined.calibrate(held_out, held_out, torch.from_numpy(kept["held_out"]))
    truth = GroundTruth([Path(path) for path in kept["path"].tolist()])
    good = torch.from_numpy(kept["composition"]).float().amax((1, 2, 3))[truth.part("good")]
    return {
        "calibration images": alone.std[1].item(),
        "with cross-validation": joined.std[1].item(),
        "good test images": good.std().item(),
    }


def spread_rows(found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row per category and seed."""
    return [
        {"category, seed": key.replace("/", ", "), **{name: f"{value:.3f}" for name, value in values.items()}}
        for key, values in found.items()
    ]


def table_rows(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Image AUROC per category, logical / structural, mean over its seeds (their number); then means of categories."""
    categories = list(dict.fromkeys(key.split("/")[0] for key in cells))
    rows = []
    for name in next(iter(cells.values())):
        means: dict[str, dict[str, float]] = {}
        for category in categories:
            found = [cell[name] for key, cell in cells.items() if key.split("/")[0] == category]
            means[category] = {column: sum(cell[column] for cell in found) / len(found) for column in found[0]}
        row: dict[str, Any] = {"rule": name}
        for category, values in means.items():
            number = sum(key.split("/")[0] == category for key in cells)
            row[f"{category} ({number})"] = " / ".join(f"{values[f'AUROC {kind}']:.1f}" for kind in KINDS)
        columns = list(next(iter(means.values())))
        row |= {c: f"{sum(values[c] for values in means.values()) / len(means):.1f}" for c in columns}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the results file and stop")
    parser.add_argument("--weights", help="weights file of mobilenetv2_100, or 'random'")
    parser.add_argument("--root", type=Path, help="folder for the drawn images and the maps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--categories", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    results = RESULTS / "merging_study.json"
    stored = json.loads(results.read_text()) if results.is_file() else {}
    cells: dict[str, Any] = stored.get("cells", {})
    found: dict[str, Any] = stored.get("spreads", {})
    if arguments.table:
        print_table(table_rows(cells))
        return
    if arguments.weights is None or arguments.root is None:
        parser.error("--weights and --root are needed to measure")
    fix_threads(arguments.threads)
    for category in arguments.categories:
        for seed in arguments.seeds:
            key = f"{category}/{seed}"
            if key in cells and key in found:
                continue
            file = arguments.root / "maps" / f"{category}_{seed}.npz"
            if not file.is_file():
                train(category, seed, arguments.root, arguments.weights, file)
            found[key] = spreads(file)
            cells[key] = cells.get(key) or measure(file)
            save("merging_study", table_rows(cells), cells=cells, spreads=found)
            print(f"{category}, seed {seed}", flush=True)
    print_table(table_rows(cells))


if __name__ == "__main__":
    main()
