"""Synthetic (drawn) categories for the studies: features from one backbone pass, metrics, results by cell."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from _common import Row, load, save
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.engine import Engine
from anomalib.models.components import GaussianBlur2d
from lightning.pytorch import seed_everything
from PIL import Image
from torch import Tensor

from anomalib_npgmf import LOCO, Npgmf, SyntheticLOCO
from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.backbone.resize import AntialiasedResize
from anomalib_npgmf.composition import CompositionConfig
from anomalib_npgmf.composition.model import GRID_MARGIN
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn
from anomalib_npgmf.host.defaults import GRADIENT_CLIP, optimiser
from anomalib_npgmf.logical.model import LogicalBranch
from anomalib_npgmf.merging import composition
from anomalib_npgmf.metrics import SPRO, LocoAUROC

SIZE = (256, 256)
BATCH = 4
MERGING_WEIGHTS = (
    *("CELL_WEIGHT", "CELL_LEAD", "CELL_FURTHER_LEAD", "WHOLE_WEIGHT", "WHOLE_LEAD"),
    *("LOGICAL_WEIGHT", "LOGICAL_LIMIT"),
)
PHOTOGRAPHS = "juice_bottle"  # category of MVTec LOCO AD
KINDS = ("logical", "structural")
FOLDERS = ("train/good", "validation/good", "test/good", "test/logical_anomalies", "test/structural_anomalies")
DEFAULTS: dict[str, Any] = {
    "weights": str,
    "backbone": "mobilenetv2_100",
    "root": Path,
    "seeds": [100, 101, 102],
    "categories": list(SCENES),
}
Cells = dict[str, dict[str, dict[str, float]]]  # "category/seed": name: column: value


def backbone_of(args: argparse.Namespace, levels: Sequence[int] | None = None) -> Backbone:
    """The network that the command line names, with its weights."""
    if args.weights is None or args.root is None:
        raise SystemExit("--weights FILE (or 'random') and --root FOLDER are needed to measure.")
    backbone = Backbone(args.backbone, levels)
    backbone.load_weights(args.weights)
    return backbone


def fit(model: Npgmf, data: AnomalibDataModule, **trainer: Any) -> Npgmf:
    """Train a model; it is left on the CPU, ready to predict."""
    data.prepare_data()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as scratch:
        Engine(devices=1, default_root_dir=scratch, **quiet, **trainer).fit(model, datamodule=data)
    return model.eval().cpu()


def data_of(args: argparse.Namespace, category: str, seed: int, drawn: int = 60, tests: int = 20) -> AnomalibDataModule:
    """The images of a category; of a drawn one with so many training images, and test images of each kind."""
    if category == PHOTOGRAPHS:
        return LOCO(args.photographs, category, train_batch_size=BATCH, eval_batch_size=8, num_workers=0)
    root = args.root / f"seed{seed}{'' if drawn == 60 else f'_of_{drawn}'}{'' if tests == 20 else f'_{tests}_tests'}"
    numbers = {f"num_test_{kind}": tests for kind in ("good", *KINDS)}
    return SyntheticLOCO(root, category, SIZE, num_train=drawn, train_batch_size=BATCH, seed=seed, **numbers)


def composition_model(data: AnomalibDataModule, seed: int, epochs: int, **settings: Any) -> Npgmf:
    """Preset small with the composition branch and nothing around it, trained on the data."""
    seed_everything(seed, workers=True, verbose=False)
    bare = {"post_processor": False, "evaluator": False, "visualizer": False}
    model = Npgmf(preset="small", composition=True, **bare, **settings)
    return fit(model, data, max_epochs=epochs)


def train_logical(
    branch: LogicalBranch,
    features: Sequence[Tensor],
    images: Tensor,
    epochs: int,
    learning_rate: float,
    embeddings: Tensor | None = None,
) -> LogicalBranch:
    """Train a logical branch on frozen features, as `Npgmf` does: Adam, clipped gradients, batches of 4.

    Args:
        branch: An initialised branch.
        features: Standardised map [N, C, h, w] of each level.
        images: The images, [N, 3, H, W].
        epochs: Number of epochs.
        learning_rate: Learning rate.
        embeddings: Text embedding of each image, [N, D]; ``None`` for the branch's own prior.
    """
    adam = optimiser(branch, learning_rate)
    assert adam is not None
    branch.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            texts = {} if embeddings is None else {"embedding": embeddings[rows]}
            with torch.enable_grad():
                loss = branch.losses([level[rows] for level in features], images[rows], **texts)["loss"]
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(branch.parameters(), GRADIENT_CLIP)
            adam.step()
        branch.codebook_statistics()
    return branch.eval()


class Pictures:
    """Features of all images of a folder in MVTec LOCO AD's layout.

    Args:
        folder: The folder.
        backbone: Frozen network; its levels are kept.
        size: Height and width that the network sees.

    Attributes:
        paths: Every image.
        train: Indices of the training images.
        features: Map [N, C, h, w] of all images by level.
        images: The images as the network sees them, [N, 3, *size].
    """

    @torch.no_grad()
    def __init__(self, folder: Path, backbone: Backbone, size: tuple[int, int] = SIZE) -> None:
        self.paths = [path for name in FOLDERS for path in sorted((folder / name).glob("*.png"))]
        self.train = [i for i, path in enumerate(self.paths) if path.parts[-3] == "train"]
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        resize = AntialiasedResize(size)
        images, levels = [], []
        for start in range(0, len(self.paths), 8):
            pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in self.paths[start : start + 8]])
            batch = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
            images.append(batch if tuple(batch.shape[-2:]) == size else resize(batch))
            levels.append(backbone(images[-1]))
        self.images = torch.cat(images)
        self.features = dict(zip(backbone.levels, map(torch.cat, zip(*levels, strict=True)), strict=True))


class DrawnCategory(Pictures):
    """Features of all images of a drawn category with 60 training images; images are drawn if they do not exist.

    Args:
        root: Folder of the drawn images.
        category: Name of the category.
        seed: Seed of the images.
        backbone: Frozen network; its levels are kept.
        size: Height and width that the network sees.
        tests: Number of test images of each kind.
    """

    def __init__(
        self, root: Path, category: str, seed: int, backbone: Backbone, size: tuple[int, int] = SIZE, tests: int = 20
    ) -> None:
        plan = DrawingPlan(category, SIZE, 60, 20, tests, tests, tests, seed)
        super().__init__(ensure_drawn(root / f"seed{seed}", plan), backbone, size)


def smoothed(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N, 1, h, w] resized to [N, 1, *size] and smoothed as in the model."""
    blur = GaussianBlur2d(sigma=4 * min(size) / 256)
    return blur(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))


def scores(paths: Sequence[Path], image_scores: Tensor, maps: Tensor | None = None) -> dict[str, float]:
    """Image AUROC and, of maps [N, 1, h, w], AU-sPRO at 0.05 by kind of anomaly and their mean, in per cent."""
    test = [i for i, path in enumerate(paths) if path.parts[-3] == "test"]
    batch = ImageBatch(
        image=torch.zeros(len(test), 3, 1, 1),
        image_path=[str(paths[i]) for i in test],
        pred_score=image_scores[test],
        anomaly_map=None if maps is None else maps[test, 0],
    )
    found = {}
    for name, metric_class in (("AUROC", LocoAUROC), ("sPRO", SPRO))[: 1 if maps is None else 2]:
        for kind in (*KINDS, "mean"):
            metric = metric_class(kind)
            metric.update(batch)
            value = metric.compute()
            if value is not None:  # the data have no such anomalies
                found[f"{name} {kind}"] = 100 * float(value)
    return found


def long(cells: Mapping[str, Any]) -> pd.DataFrame:
    """Long table with one row per value of the cells: ``category``, ``seed``, ``name``, ``column``, ``value``."""
    rows = [
        (*key.replace("/seed", "/").split("/"), name, column, value)
        for key, names in cells.items()
        for name, columns in names.items()
        for column, value in columns.items()
    ]
    return pd.DataFrame(rows, columns=["category", "seed", "name", "column", "value"])


def collect(
    name: str,
    args: argparse.Namespace,
    rows_of: Callable[[Cells], list[Row]],
    measure: Callable[[str, int], Any],
    *,
    merged: bool = False,
    **extra: object,
) -> None:
    """Measure every category and seed that the results file lacks, and write the file after each.

    Args:
        name: Name of the results file.
        args: Command line.
        rows_of: Rows of the table from the cells.
        measure: Returns the cell (names, columns, values) of a category and a seed.
        merged: Whether the cells depend on how the composition is merged; cells of two rules are not mixed.
        extra: What else the results file holds.
    """
    result, settings = load(name, args.out), {key: getattr(args, key, None) for key in ("epochs", "runs", "backbone")}
    if merged:
        weights = {name: vars(composition)[name] for name in MERGING_WEIGHTS}
        codes = {"codes_of_grids": [*CompositionConfig().codes_of_grids], "GRID_MARGIN": GRID_MARGIN}
        settings["composition"] = codes | weights | composition.MapRule()._asdict()
    former = result.get("settings") if result.get("cells") else settings
    if former != settings:
        known = former or "unrecorded settings"
        raise SystemExit(f"{args.out / name}.json was measured with {known}, not {settings}; give another --out.")
    cells: Cells = result.get("cells", {})
    for category, seed in product(args.categories, args.seeds):
        if f"{category}/{seed}" not in cells:
            cells[f"{category}/{seed}"] = measure(category, seed)
            save(args.out / f"{name}.json", rows_of(cells), cells=cells, settings=settings, **extra)


def photographs_and_drawn(cells: Mapping[str, Any], column: str) -> list[Row]:
    """AUROC and sPRO@0.05 of each variant: of the photographs, and logical / structural of the mean drawn category.

    Args:
        cells: Measured cells.
        column: What the variants are called.
    """
    found = long(cells)
    rows = []
    for name, of_name in found.groupby("name", sort=False):
        row: Row = {column: str(name)}
        photographs = of_name.category == PHOTOGRAPHS
        for metric in ("AUROC", "sPRO"):
            for title, chosen in ((PHOTOGRAPHS, of_name[photographs]), ("drawn", of_name[~photographs])):
                means = chosen.groupby("column").value.mean()
                values = [means[kind] for kind in (f"{metric} {kind}" for kind in KINDS) if kind in means]
                if values:
                    row[f"{metric} {title}"] = " / ".join(f"{value:.1f}" for value in values)
        rows.append(row)
    return rows
