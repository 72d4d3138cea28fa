"""Anomaly maps of a category in files, and its evaluation from Python and from the command line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import tifffile
from spro_reference import Category

from anomalib_npgmf.metrics import evaluate_loco

LIMITS = (0.01, 0.05, 0.3, 1.0)
KINDS = ("logical_anomalies", "structural_anomalies")


def write_maps(category: Category, seed: int = 1, decimals: int | None = None) -> dict[Path, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = {}
    for path in category.images:
        scores = rng.random(category.size) + 0.3 * category.masks[path].any(axis=0)
        maps[path] = (np.round(scores, decimals) if decimals else scores).astype(np.float32)
        target = map_path(category, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, maps[path])
    return maps


def map_path(category: Category, image: Path) -> Path:
    return category.maps_dir / category.name / "test" / image.parent.name / f"{image.stem}.tiff"


def evaluate(category: Category, limits=LIMITS) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate_loco(category.root, category.name, category.maps_dir, limits)


def command(category: Category, *more: str) -> list[str]:
    return [
        f"--dataset-root={category.root}",
        f"--category={category.name}",
        f"--anomaly-maps={category.maps_dir}",
        *more,
    ]
