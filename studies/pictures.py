"""The picture that opens the README: what a trained model says of drawn images.

    python studies/pictures.py --weights mobilenetv2_100=FILE

Trains the model of configs/plans/synthetic.yaml with its settings, one category after the other, and shows of each a
logical anomaly, a structural one and a good image: not the best ones, but those whose scores are at the median of their
kind (``--rank``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.benchmark.plan import Cell, load_plan
from anomalib_npgmf.benchmark.weights import insert_files, parse_weights
from anomalib_npgmf.host.drawing import Picture, heat_map, outline, to_rgb
from anomalib_npgmf.host.visualizer import speaking_part
from anomalib_npgmf.metrics.ground_truth import kind_of

ROOT = Path(__file__).parents[1]
KINDS = {"logical_anomalies": "logical anomaly", "structural_anomalies": "structural anomaly", "good": "good"}
PANEL, DPI, WIDTH, LEFT = 256, 100, 1200, 136  # pixels; LEFT for the names of the rows


@dataclass
class Row:
    """One image: its kind, score in (0, 1), the part that decides it, and named pictures."""

    kind: str
    score: float
    speaker: str
    pictures: dict[str, Picture]


def train(cell: Cell, files: dict[str, Path]) -> tuple[Npgmf, SyntheticLOCO]:
    """Train the model of a cell."""
    seed_everything(cell.seed, workers=True, verbose=False)
    data = SyntheticLOCO(**cell.data_args, root=cell.root)
    model = Npgmf(**insert_files(cell.model_args, files), visualizer=False, evaluator=False)
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(default_root_dir=scratch, logger=False, enable_model_summary=False, **cell.trainer)
        engine.fit(model, datamodule=data)
    return model.eval().cpu(), data


@torch.no_grad()
def rows_of(model: Npgmf, data: SyntheticLOCO) -> list[Row]:
    """Everything that the model says of the test images."""
    data.setup("test")
    post: Any = model.post_processor
    image_scale = post.image_min, post.image_max, post.image_threshold
    pixel_scale = post.pixel_min, post.pixel_max, post.pixel_threshold
    merger = model.model.merger
    rows = []
    for batch in data.test_dataloader():
        images = model.pre_processor.transform(batch.image)
        found = model.model.branch_maps(images)
        merged = model.model.merge(found.maps)
        assert merged.pred_score is not None
        scores = post._normalize(merged.pred_score, *image_scale)
        parts = merger.calibrated_maps(found.maps) | {"merged": merged.anomaly_map}
        speakers = speaking_part(merger, found.maps)
        for index, path in enumerate(batch.image_path):
            image = _sized(to_rgb(images[index]))
            pictures = {"image": image, "ground truth": outline(image, batch.gt_mask[index].squeeze().bool().numpy())}
            for name, part in parts.items():
                plane = post._normalize(part[index].squeeze(), *pixel_scale).numpy()
                pictures[f"{name} map"] = heat_map(image, cv2.resize(plane, (PANEL, PANEL)))
            assert found.reconstruction is not None
            pictures["what normal\nwould look like"] = _sized(to_rgb(found.reconstruction[index]))
            rows.append(Row(str(kind_of(Path(path))), float(scores[index]), speakers[index], pictures))
    return rows


def choose(rows: Sequence[Row], rank: float) -> list[Row]:
    """The row of each kind whose score has that rank among its kind, from 0 (lowest) to 1."""
    chosen = []
    for kind in KINDS:
        ordered = sorted((row for row in rows if row.kind == kind), key=lambda row: row.score)
        chosen.append(ordered[round(rank * (len(ordered) - 1))])
    return chosen


def draw(by_category: dict[str, list[Row]], path: Path) -> None:
    """Draw all rows into one picture."""
    names = list(next(iter(by_category.values()))[0].pictures)
    rows = [(category, row) for category, chosen in by_category.items() for row in chosen]
    side = (WIDTH - LEFT) / len(names)  # pixels of one panel
    figure = Figure(figsize=(WIDTH / DPI, (len(rows) * (side + 2) + 84) / DPI))
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    height = figure.get_figheight() * DPI
    figure.subplots_adjust(LEFT / WIDTH, 42 / height, 0.999, 1 - 42 / height, 0.02, 0.02)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=10)
    for line, (category, row) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, row.pictures.values(), strict=True):
            axes.imshow(picture, interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        text = f"{category.replace('_', ' ')}\n{KINDS[row.kind]}\nscore {row.score:.2f}"
        if row.score > 0.5:
            who = "composition" if row.speaker == "composition" else f"{row.speaker} branch"
            text += f"\n{'false alarm' if row.kind == 'good' else 'found'} by the\n{who}"
        elif row.kind != "good":
            text += "\nmissed"
        line[0].text(-0.06, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    bar = figure.add_axes((0.36, 18 / height, 0.28, 9 / height))
    ramp = heat_map(np.full((1, 256, 3), 255, np.uint8), np.linspace(0, 1, 256, dtype=np.float32)[None])
    bar.imshow(ramp, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0.25, 0.5, 1], ["normal", "threshold", "anomalous"], fontsize=9)
    bar.tick_params(length=2, pad=2)
    options = (
        {"pil_kwargs": {"quality": 88, "optimize": True}} if path.suffix == ".jpg" else {"metadata": {"Software": None}}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, **options)


def _sized(picture: Picture) -> Picture:
    return np.asarray(cv2.resize(picture, (PANEL, PANEL), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=PATH", help="as for the benchmark")
    parser.add_argument("--categories", nargs="+", default=["filled_vials", "sorting_tray", "loose_screws"])
    parser.add_argument("--epochs", type=int, help="number of epochs instead of the plan's")
    parser.add_argument("--root", help="folder of the drawn images instead of the plan's; may hold {seed}")
    parser.add_argument("--rank", type=float, default=0.5, help="rank of the scores to show, 0 to 1 (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "opening.jpg")
    options = parser.parse_args()
    files = parse_weights(options.weights)
    plan = load_plan(ROOT / "configs" / "plans" / "synthetic.yaml", options.root, options.epochs)
    by_category = {}
    for category in options.categories:
        (cell,) = plan.select([f"npgmf/default/{category}/seed0"]).cells
        by_category[category] = choose(rows_of(*train(cell, files)), options.rank)
    draw(by_category, options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
