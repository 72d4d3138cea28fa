"""For the measurements of AU-sPRO: a drawn category with anomaly maps, and evaluators to compare with.

The evaluators are a curve whose thresholds are refined until it is fine enough, and one of every distinct score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from anomalib_npgmf.metrics.ground_truth import (
    GOOD,
    KINDS,
    image_size,
    list_test_images,
    read_defects,
    read_defects_config,
)
from anomalib_npgmf.metrics.scores import FloatArray, resize_map

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
# defect type: pixel value, saturation threshold, smallest and largest area
DEFECTS: dict[str, tuple[int, float, tuple[int, int]]] = {
    "missing": (255, 0.5, (30000, 300000)),
    "additional": (254, 20000, (30000, 300000)),
    "scratch": (253, 1.0, (500, 20000)),
    "stain": (252, 2000, (3000, 20000)),
}
Values = dict[str, dict[str, float]]  # by kind or defect type, by limit


def draw(root: Path, size: tuple[int, int], counts: Sequence[int], map_size: int, seed: int = 0) -> None:
    """Write images, masks and low-resolution maps (.npy) that find most defects, but not all of each."""
    rng = np.random.default_rng(seed)
    scale = size[0] * size[1] / (1280 * 1600)
    folder = category(root)
    for kind, count in zip((GOOD, *KINDS), counts, strict=True):
        names = list(DEFECTS)[:2] if kind == KINDS[0] else list(DEFECTS)[2:]
        for number in range(count):
            path = made(folder / "test" / kind / f"{number:03d}.png")
            cv2.imwrite(str(path), np.zeros(size, np.uint8))
            heat = cv2.GaussianBlur(rng.random((map_size, map_size), dtype=np.float32), (0, 0), 4) * 4
            for channel in range(0 if kind == GOOD else 1 + number % 2):
                value, _, areas = DEFECTS[names[int(rng.integers(2))]]
                radius = max(2, int(np.sqrt(scale * rng.uniform(*areas) / np.pi)))
                centre = [int(rng.integers(radius, n - radius)) for n in size[::-1]]
                mask = cv2.circle(np.zeros(size, np.uint8), centre, radius, value, -1)
                cv2.imwrite(str(made(folder / "ground_truth" / kind / path.stem / f"{channel:03d}.png")), mask)
                small = cv2.resize((mask > 0).astype(np.float32), (map_size, map_size), interpolation=cv2.INTER_AREA)
                heat += rng.uniform(0, 0.6) * cv2.GaussianBlur(small, (0, 0), 6)
            np.save(made(root / "small" / kind / f"{number:03d}.npy"), heat)
    keys = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    config = [dict(zip(keys, (name, v, t, t <= 1), strict=True)) for name, (v, t, _) in DEFECTS.items()]
    (folder / "defects_config.json").write_text(json.dumps(config))


def category(root: Path) -> Path:
    """Folder of the drawn category."""
    return root / "data" / "parts"


def made(path: Path) -> Path:
    """The path, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def small_map(root: Path, image: Path) -> FloatArray:
    """The low-resolution map [h, w] of an image."""
    return np.load(root / "small" / image.parent.name / f"{image.stem}.npy")


def write_tiffs(root: Path) -> None:
    """Write every map as a TIFF file of the image's size."""
    for image in list_test_images(category(root)):
        target = made(root / "maps" / "parts" / "test" / image.parent.name / f"{image.stem}.tiff")
        tifffile.imwrite(target, resize_map(small_map(root, image), image_size(image)))


def load_category(root: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """Full-size maps, negative pixels, and masks with saturation areas of what counts, per kind or defect type."""
    config = read_defects_config(category(root))
    loaded: dict[str, list[Any]] = {name: [] for name in names}
    for path in list_test_images(category(root)):
        kind = path.parent.name
        defects = [] if kind == GOOD else read_defects(path, config)
        scores = resize_map(small_map(root, path), image_size(path))
        negative = ~np.any([d.mask for d in defects] or [np.zeros(scores.shape, bool)], axis=0)
        for name, items in loaded.items():
            counted = [(d.mask, d.saturation_area) for d in defects if name in (kind, d.name)]
            if counted or kind == GOOD:
                items.append((scores, negative, counted))
    return loaded


def sweep_point(items: list[Any], threshold: float, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """False positive rate and mean sPRO at one threshold, from the definition."""

    def look(item: tuple[Any, Any, list[Any]]) -> tuple[int, int, list[float]]:
        scores, negative, defects = item
        positive = scores > threshold
        overlaps = [min(np.count_nonzero(positive & mask) / area, 1.0) for mask, area in defects]
        return np.count_nonzero(positive & negative), np.count_nonzero(negative), overlaps

    positives, negatives, overlaps = zip(*pool.map(look, items), strict=True)
    return sum(positives) / sum(negatives), float(np.concatenate(overlaps).mean())


def area_under(points: Iterable[tuple[float, float]], limit: float) -> float:
    """Normalised area up to a false positive rate."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            width = min(x1, limit) - x0
            total += width * (2 * y0 + (y1 - y0) * width / (x1 - x0)) / 2
    return total / limit


def refinement(root: Path, limits: Sequence[float] = LIMITS, names: Iterable[str] = (*KINDS, *DEFECTS)) -> Values:
    """What ``evaluate_loco`` gives: thresholds are refined until curve points are within 0.01 of their neighbours."""
    results = {}
    with ThreadPoolExecutor(2) as pool:
        for name, items in load_category(root, names).items():
            ranks = np.sort(np.concatenate([scores[::16, ::16].ravel() for scores, _, _ in items]))[::-1]
            known = {0: (0.0, 0.0), len(ranks): (1.0, 1.0)}
            intervals = [(0, len(ranks))]
            while intervals:
                low, high = intervals.pop()
                close = np.abs(np.subtract(known[low], known[high])).max() <= 0.01
                if high - low < 2 or close or known[low][0] > max(limits):
                    continue
                middle = (low + high) // 2
                known[middle] = sweep_point(items, ranks[middle], pool)
                intervals += [(low, middle), (middle, high)]
            points = [known[rank] for rank in sorted(known)]
            results[name] = {str(limit): area_under(points, limit) for limit in limits} | {"thresholds": len(points)}
    return results


def brute_force(root: Path) -> Values:
    """Every distinct score as a threshold."""
    results = {}
    with ThreadPoolExecutor(1) as pool:
        for name, items in load_category(root, (*KINDS, *DEFECTS)).items():
            thresholds = np.unique(np.concatenate([scores.ravel() for scores, _, _ in items]))[::-1]
            points = [sweep_point(items, threshold, pool) for threshold in [*thresholds, -np.inf]]
            results[name] = {str(limit): area_under(points, limit) for limit in LIMITS} | {"thresholds": len(points)}
    return results
