"""A small category in the layout of MVTec LOCO AD, and the score of it straight from the definition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 0.4, "relative_saturation": True},
    {"defect_name": "swapped", "pixel_value": 254, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "scratch", "pixel_value": 253, "saturation_threshold": 9, "relative_saturation": False},
    {"defect_name": "stain", "pixel_value": 252, "saturation_threshold": 5000, "relative_saturation": False},
]
SIZE = (17, 23)


def brute_force_curve(
    maps: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    areas: Sequence[Sequence[int]],
    counted: Sequence[Sequence[bool]] | None = None,
) -> list[tuple[float, float]]:
    """(FPR, mean sPRO) from the definition: one binary map per distinct score, plain loops."""
    thresholds = sorted({float(v) for m in maps for v in m.ravel()}, reverse=True)
    points = []
    negatives = sum(int((~stack.any(axis=0)).sum()) for stack in masks)
    for threshold in [*thresholds, -np.inf]:
        overlaps, false_positives = [], 0
        for index, (scores, stack, image_areas) in enumerate(zip(maps, masks, areas, strict=True)):
            positive = scores > threshold
            false_positives += int((positive & ~stack.any(axis=0)).sum())
            for channel, (mask, area) in enumerate(zip(stack, image_areas, strict=True)):
                if counted is None or counted[index][channel]:
                    overlaps.append(min(int((positive & mask).sum()) / area, 1.0))
        points.append((false_positives / negatives, sum(overlaps) / len(overlaps)))
    return points


def area_under(points: Sequence[tuple[float, float]], limit: float) -> float:
    """Trapezoids up to the limit, with linear interpolation there, divided by the limit."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end, height = x1, y1
        if x1 > limit:
            end, height = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        total += (end - x0) * (y0 + height) / 2
    return total / limit


def saturation(entry: dict[str, Any], area: int) -> int:
    threshold = entry["saturation_threshold"]
    return int(threshold * area) if entry["relative_saturation"] else min(threshold, area)


class Category:
    """Files of a drawn category and what was drawn."""

    def __init__(self, root: Path, seed: int = 0, size: tuple[int, int] = SIZE, per_kind: int = 3) -> None:
        self.root, self.name, self.size = root, "parts", size
        self.folder = root / self.name
        self.maps_dir = root.parent / "maps"
        self.images: list[Path] = []
        self.masks: dict[Path, np.ndarray] = {}
        self.types: dict[Path, list[dict[str, Any]]] = {}
        rng = np.random.default_rng(seed)
        self.folder.mkdir(parents=True)
        (self.folder / "defects_config.json").write_text(json.dumps(CONFIG))
        for kind, entries in (("good", []), ("logical_anomalies", CONFIG[:2]), ("structural_anomalies", CONFIG[2:])):
            for number in range(per_kind):
                path = self.folder / "test" / kind / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
                self.images.append(path)
                chosen = [entries[(number + k) % 2] for k in range(1 + number % 2)] if entries else []
                masks = np.zeros((len(chosen), *size), dtype=bool)
                for index, entry in enumerate(chosen):
                    top, left = (int(rng.integers(0, n - 8)) for n in size)
                    masks[index, top : top + 5 + number, left : left + 7] = True
                    self.write_mask(path, index, masks[index] * entry["pixel_value"])
                self.masks[path], self.types[path] = masks, chosen

    def mask_path(self, image: Path, index: int) -> Path:
        return self.folder / "ground_truth" / image.parent.name / image.stem / f"{index:03d}.png"

    def write_mask(self, image: Path, index: int, pixels: np.ndarray) -> None:
        path = self.mask_path(image, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    def of(self, kind: str) -> list[Path]:
        return [path for path in self.images if path.parent.name == kind]

    def areas(self, image: Path) -> list[int]:
        return [saturation(t, int(m.sum())) for t, m in zip(self.types[image], self.masks[image], strict=True)]

    def expected(self, maps: dict[Path, np.ndarray], label: str) -> list[tuple[float, float]]:
        """Curve by brute force for a kind of anomaly or a defect type."""
        images = [
            path
            for path in self.images
            if path.parent.name in ("good", label) or any(t["defect_name"] == label for t in self.types[path])
        ]
        counted = [[label in (path.parent.name, t["defect_name"]) for t in self.types[path]] for path in images]
        return brute_force_curve(
            [maps[p] for p in images], [self.masks[p] for p in images], [self.areas(p) for p in images], counted
        )
