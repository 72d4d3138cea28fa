"""The picture that opens the README: results of a trained model on drawn images.

    python studies/pictures.py --categories sorting_tray cable_pairs loose_screws

Trains the model of configs/plans/synthetic_60.yaml, one category after the other, and shows of each a logical anomaly,
a structural one and a good image: not the best ones, but those whose scores are at the median of their kind.
``--epochs`` and ``--root``, which may hold {seed}, take the place of the plan's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import ROOT, options
from _drawn import fit
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.weights import insert_files, parse_weights
from anomalib_npgmf.host.drawing import Picture, heat_map, outline, resized, to_rgb
from anomalib_npgmf.host.visualizer import dominant_part
from anomalib_npgmf.metrics.ground_truth import kind_of

KINDS = {"logical_anomalies": "logical anomaly", "structural_anomalies": "structural anomaly", "good": "good"}
PANEL, DPI, WIDTH, LEFT = 256, 100, 1200, 136  # pixels; LEFT for the names of the rows


class Row(NamedTuple):
    """One image: its kind, score in (0, 1), the branch that determines it, and named panels."""

    kind: str
    score: float
    part: str
    pictures: dict[str, Picture]

    @property
    def verdict(self) -> str:
        """Text beside the panels: kind, score, and whether and by which branch it was found."""
        text = f"{KINDS[self.kind]}\nscore {self.score:.2f}"
        if self.score <= 0.5:
            return text if self.kind == "good" else f"{text}\nmissed"
        who = self.part if self.part == "composition" else f"{self.part} branch"
        return f"{text}\n{'false alarm' if self.kind == 'good' else 'found'} by the\n{who}"


@torch.no_grad()
def rows_of(model: Npgmf, data: SyntheticLOCO) -> list[Row]:
    """Scores and panels of all test images."""
    data.setup("test")
    post: Any = model.post_processor
    net = model.model
    rows = []
    for batch in data.test_dataloader():
        images = model.pre_processor.transform(batch.image)
        found = net.branch_maps(images, details=True)
        merged = net.merge(found.maps)
        scores = post._normalize(merged.pred_score, post.image_min, post.image_max, post.image_threshold)
        maps = net.merger.calibrated_maps(found.maps) | {"merged": merged.anomaly_map}
        parts = dominant_part(net.merger, found.maps)
        for index, path in enumerate(batch.image_path):
            image = resized(to_rgb(images[index], net.mean, net.std), (PANEL, PANEL))
            pictures = {"image": image, "ground truth": outline(image, batch.gt_mask[index].squeeze().bool().numpy())}
            for name, part in maps.items():
                plane = post._normalize(part[index].squeeze(), post.pixel_min, post.pixel_max, post.pixel_threshold)
                pictures[f"{name} map"] = heat_map(image, plane.numpy())
            assert found.reconstruction is not None
            pictures["what normal\nwould look like"] = to_rgb(found.reconstruction[index], net.mean, net.std)
            rows.append(Row(str(kind_of(Path(path))), float(scores[index]), parts[index], pictures))
    return rows


def medians(rows: Sequence[Row]) -> list[Row]:
    """The row of each kind whose score is the median of its kind."""
    ordered = {kind: sorted((row for row in rows if row.kind == kind), key=lambda row: row.score) for kind in KINDS}
    return [same[round(0.5 * (len(same) - 1))] for same in ordered.values()]


def draw(rows: Sequence[tuple[str, Row]], path: Path) -> None:
    """Draw rows of categories into one picture."""
    names = list(rows[0][1].pictures)
    side = (WIDTH - LEFT) / len(names)  # pixels of one panel
    figure = Figure(figsize=(WIDTH / DPI, (len(rows) * (side + 2) + 84) / DPI))
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    height = figure.get_figheight() * DPI
    figure.subplots_adjust(LEFT / WIDTH, 42 / height, 0.999, 1 - 42 / height, 0.02, 0.02)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=10)
    for line, (category, row) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, row.pictures.values(), strict=True):
            axes.imshow(picture, interpolation="lanczos", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        text = f"{category.replace('_', ' ')}\n{row.verdict}"
        line[0].text(-0.06, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    bar = figure.add_axes((0.36, 18 / height, 0.28, 9 / height))
    ramp = heat_map(np.full((1, 256, 3), 255, np.uint8), np.linspace(0, 1, 256, dtype=np.float32)[None])
    bar.imshow(ramp, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0.25, 0.5, 1], ["normal", "threshold", "anomalous"], fontsize=9)
    bar.tick_params(length=2, pad=2)
    figure.savefig(path, dpi=DPI, pil_kwargs={"quality": 88, "optimize": True})


def main() -> None:
    categories = ["filled_vials", "sorting_tray", "loose_screws"]
    args = options(__doc__, weights=[], categories=categories, epochs=int, root=str, out=ROOT / "docs" / "images")
    files = parse_weights(args.weights)
    plan = load_plan(ROOT / "configs" / "plans" / "synthetic_60.yaml", args.root, args.epochs)
    rows = []
    for category in args.categories:
        (cell,) = plan.select([f"npgmf/default/{category}/seed0"]).cells
        seed_everything(cell.seed, workers=True, verbose=False)
        data = SyntheticLOCO(**cell.data_args, root=cell.root)
        model = Npgmf(**insert_files(cell.model_args, files), visualizer=False, evaluator=False)
        rows += [(category, row) for row in medians(rows_of(fit(model, data, **cell.trainer), data))]
    draw(rows, args.out / "opening.jpg")


if __name__ == "__main__":
    main()
