"""A drawn category in MVTec LOCO AD's layout, with anomaly maps, for the measurements of AU-sPRO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

KINDS = ("logical_anomalies", "structural_anomalies")
CONFIG: list[dict[str, Any]] = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "additional", "pixel_value": 254, "saturation_threshold": 20000, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 253, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "stain", "pixel_value": 252, "saturation_threshold": 2000, "relative_saturation": False},
]
AREAS = {"missing": (30000, 300000), "additional": (30000, 300000), "scratch": (500, 20000), "stain": (3000, 20000)}


def draw(root: Path, size: tuple[int, int], counts: Sequence[int], map_size: int, seed: int = 0) -> None:
    """Write images, masks and low-resolution maps (.npy) that find most defects, but not all of each."""
    rng = np.random.default_rng(seed)
    scale = size[0] * size[1] / (1280 * 1600)
    folder = root / "data" / "parts"
    for kind, count in zip(("good", *KINDS), counts, strict=True):
        entries = CONFIG[:2] if kind == KINDS[0] else CONFIG[2:]
        for number in range(count):
            path = folder / "test" / kind / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros(size, np.uint8))
            heat = cv2.GaussianBlur(rng.random((map_size, map_size), dtype=np.float32), (0, 0), 4) * 4
            for channel in range(0 if kind == "good" else 1 + number % 2):
                entry = entries[int(rng.integers(2))]
                radius = max(2, int(np.sqrt(scale * rng.uniform(*AREAS[entry["defect_name"]]) / np.pi)))
                centre = [int(rng.integers(radius, n - radius)) for n in size[::-1]]
                mask = cv2.circle(np.zeros(size, np.uint8), centre, radius, entry["pixel_value"], -1)
                target = folder / "ground_truth" / kind / path.stem / f"{channel:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), mask)
                small = cv2.resize((mask > 0).astype(np.float32), (map_size, map_size), interpolation=cv2.INTER_AREA)
                heat += rng.uniform(0, 0.6) * cv2.GaussianBlur(small, (0, 0), 6)
            saved = root / "small" / kind / f"{number:03d}.npy"
            saved.parent.mkdir(parents=True, exist_ok=True)
            np.save(saved, heat)
    (folder / "defects_config.json").write_text(json.dumps(CONFIG))


def small_map(root: Path, image: Path) -> np.ndarray:
    """Return the low-resolution map [h, w] of an image."""
    return np.load(root / "small" / image.parent.name / f"{image.stem}.npy")


def write_tiffs(root: Path, size: tuple[int, int]) -> None:
    """Write every map as a TIFF file of the images' size."""
    import tifffile

    for path in sorted((root / "small").glob("*/*.npy")):
        target = root / "maps" / "parts" / "test" / path.parent.name / f"{path.stem}.tiff"
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, cv2.resize(np.load(path), size[::-1], interpolation=cv2.INTER_LINEAR))
