"""One logical branch for several categories: does it matter whether the text prior tells them apart?

    python studies/one_model.py --weights mobilenetv2_100.pth --root drawings
    python studies/one_model.py --table

Three ways to train the logical branch of preset small at 128 px, with the same number of passes over every image: one
branch per category, one for all categories with a vector of each in the place of its text embedding, and one for all
with the same vector everywhere. The vectors are random and of unit length, or with ``--clip-weights`` CLIP's embeddings
of the categories' names: for a handful of fixed categories the linear layer behind them turns either into any other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import RESULTS, fix_threads, print_table, save
from _drawn import KINDS, DrawnCategory, spread
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.config import PRESETS
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn
from anomalib_npgmf.logical.model import LogicalBranch
from anomalib_npgmf.logical.text_prior import caption_of, encode_caption
from anomalib_npgmf.merging.rule import MapMerger

SIZE = (128, 128)
BATCH = 4
ARMS = ("one per category", "one for all, a vector per category", "one for all, the same vector")
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
    taken = torch.cat([torch.full((len(cell.rows["train"]),), i) for i, cell in enumerate(cells)])
    rows = torch.cat([torch.tensor(cell.rows["train"]) for cell in cells])
    texts = torch.stack([vectors[name] for name in categories])

    def pick(chosen: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        where = list(zip(taken[chosen].tolist(), rows[chosen].tolist(), strict=True))
        features = [torch.stack([cells[c].features[level][r] for c, r in where]) for level in backbone.levels]
        return features, torch.stack([cells[c].images[r] for c, r in where]), texts[taken[chosen]]

    branch.initialise(pick(torch.randperm(len(rows))[:64])[0])
    branch.train()
    parameters = [p for p in branch.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.5, 0.999))
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(BATCH):
            features, images, text = pick(chosen)
            loss = branch.losses(branch.standardise(features), images, text)["loss"]
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        branch.codebook_statistics()
    return branch.eval()


@torch.no_grad()
def test(branch: LogicalBranch, cell: DrawnCategory, vector: Tensor) -> dict[str, float]:
    """Image AUROC and AU-sPRO at 0.05 of the smoothed map, in per cent."""
    merger = MapMerger(SIZE, 1.0, 1.0)  # uncalibrated: a scale changes neither metric
    maps = []
    for chosen in torch.arange(len(cell.paths)).split(BATCH):
        features = branch.standardise([level[chosen] for level in cell.features.values()])
        output = branch(features, reconstruct=False, embedding=vector.expand(len(chosen), -1))
        maps.append(merger({"logical": branch.anomaly_map(features, output)}))
    merged = torch.cat(maps)
    areas = {"AUROC": cell.auroc(merged.amax((1, 2, 3))), "sPRO": cell.spro(merged)}
    return {f"{metric} {kind}": 100 * value for metric, found in areas.items() for kind, value in found.items()}


def embeddings(categories: list[str], clip_weights: str | None, seed: int) -> dict[str, Tensor]:
    """A unit vector per category."""
    if clip_weights is not None:
        return {name: encode_caption(caption_of(name), weights=clip_weights) for name in categories}
    generator = torch.Generator().manual_seed(seed)
    return {name: F.normalize(torch.randn(512, generator=generator), dim=0) for name in categories}


def table_rows(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds, of the mean over categories and of every category."""
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for key, arms in cells.items():
        category, seed = key.rsplit("/seed", 1)
        by_seed.setdefault(int(seed), {})[category] = arms
    names = list(dict.fromkeys(name for found in by_seed.values() for name in found))
    rows = []
    for category in ("mean", *names):
        for arm in ARMS:
            row: dict[str, Any] = {"category": category, "logical branch": arm}
            for column in COLUMNS:
                values = []
                for found in by_seed.values():
                    chosen = names if category == "mean" else [category]
                    if all(name in found for name in chosen):
                        values.append(sum(found[name][arm][column] for name in chosen) / len(chosen))
                row[column] = spread(values) if values else ""
            rows.append(row)
    whole = [found for found in by_seed.values() if all(name in found for name in names)]
    for second in (ARMS[0], ARMS[2]):
        row = {"category": "mean, seed by seed", "logical branch": f"a vector per category less {second}"}
        for column in COLUMNS:
            gaps = [sum(f[name][ARMS[1]][column] - f[name][second][column] for name in names) for f in whole]
            row[column] = spread([gap / len(names) for gap in gaps], "+") if gaps else ""
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the results file and stop")
    parser.add_argument("--weights", help="weights file of the backbone, or 'random'")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--clip-weights", help="weights file of CLIP; random vectors without")
    parser.add_argument("--root", type=Path, default=Path("datasets/SyntheticLOCO"), help="folder of drawn images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--categories", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    file = RESULTS / "one_model.json"
    cells: dict[str, Any] = json.loads(file.read_text())["cells"] if file.is_file() else {}
    if arguments.table:
        print_table(table_rows(cells))
        return
    if arguments.weights is None or arguments.root is None:
        parser.error("--weights and --root are needed to measure")
    fix_threads(arguments.threads)
    backbone = Backbone(arguments.backbone)
    backbone.load_weights(arguments.weights)
    vector_kind = "random" if arguments.clip_weights is None else "CLIP"
    for seed in arguments.seeds:
        keys = {name: f"{name}/seed{seed}" for name in arguments.categories}
        if all(key in cells for key in keys.values()):
            continue
        start = time.perf_counter()
        drawn = {}
        for name in arguments.categories:
            folder = ensure_drawn(
                arguments.root / f"seed{seed}", DrawingPlan(name, (256, 256), 60, 20, 20, 20, 20, seed)
            )
            with torch.no_grad():
                drawn[name] = DrawnCategory(folder, backbone, SIZE)
        own = embeddings(arguments.categories, arguments.clip_weights, seed)
        same = dict.fromkeys(own, next(iter(own.values())))
        found: dict[str, dict[str, Any]] = {key: {} for key in keys.values()}
        for arm, vectors in zip(ARMS, (own, own, same), strict=True):
            groups = [{name: cell} for name, cell in drawn.items()] if arm == ARMS[0] else [drawn]
            for group in groups:
                branch = train(group, vectors, backbone, arguments.epochs, seed)
                for name, cell in group.items():
                    found[keys[name]][arm] = test(branch, cell, vectors[name])
            print(f"seed {seed}, {arm}: {time.perf_counter() - start:.0f} s", flush=True)
        cells |= found
        save("one_model", table_rows(cells), cells=cells, epochs=arguments.epochs, vectors=vector_kind)
    print_table(table_rows(cells))


if __name__ == "__main__":
    main()
