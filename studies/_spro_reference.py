"""Reference evaluators of AU-sPRO: thresholds refined until the curve is fine enough, and every distinct score."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from _spro_category import CONFIG, KINDS, small_map

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)


def load_category(root: Path, defect_types: bool) -> dict[str, list]:
    """Full-size maps with masks of all defects and saturation areas of those that count, per kind or defect type."""
    from anomalib_npgmf.metrics.ground_truth import image_size, list_test_images, read_defects, read_defects_config
    from anomalib_npgmf.metrics.scores import resize_map

    folder = root / "data" / "parts"
    config = read_defects_config(folder)
    names = [*KINDS, *(entry["defect_name"] for entry in CONFIG if defect_types)]
    loaded: dict[str, list] = {name: [] for name in names}
    for path in list_test_images(folder):
        kind = path.parent.name
        defects = [] if kind == "good" else read_defects(path, config)
        scores = resize_map(small_map(root, path), image_size(path))
        negative = ~np.any([d.mask for d in defects] or [np.zeros(scores.shape, bool)], axis=0)
        for name in names:
            counted = [(d.mask, d.saturation_area) for d in defects if name in (kind, d.name)]
            if counted or kind == "good":
                loaded[name].append((scores, negative, counted))
    return loaded


def sweep_point(items: list, threshold: float, pool: ThreadPoolExecutor) -> list[float]:
    """False positive rate and mean sPRO at one threshold, from the definition."""

    def look(item: tuple) -> tuple[int, list[float]]:
        scores, negative, defects = item
        positive = scores > threshold
        overlaps = [min(np.count_nonzero(positive & mask) / area, 1.0) for mask, area in defects]
        return np.count_nonzero(positive & negative), overlaps

    seen = list(pool.map(look, items))
    negatives = sum(np.count_nonzero(negative) for _, negative, _ in items)
    overlaps = [overlap for _, image in seen for overlap in image]
    return [sum(count for count, _ in seen) / negatives, float(np.mean(overlaps))]


def area_under(points: Sequence[Sequence[float]], limit: float) -> float:
    fpr, spro = np.array(points).T
    inside = fpr < limit
    x = np.append(fpr[inside], limit)
    y = np.append(spro[inside], np.interp(limit, fpr, spro))
    return float(np.trapezoid(y, x) / limit)


def run_refinement(
    root: Path, limits: Sequence[float] = LIMITS, defect_types: bool = True
) -> dict[str, dict[str, float]]:
    """What ``evaluate_loco`` gives: thresholds are refined until curve points are within 0.01 of their neighbours."""
    results = {}
    with ThreadPoolExecutor(2) as pool:
        for name, items in load_category(root, defect_types).items():
            ranks = np.sort(np.concatenate([scores[::16, ::16].ravel() for scores, _, _ in items]))[::-1]
            known = {0: [0.0, 0.0], len(ranks): [1.0, 1.0]}
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


def run_refinement_at_headline(root: Path) -> dict[str, dict[str, float]]:
    """What ``SPRO`` gives: both kinds, up to 0.05."""
    return run_refinement(root, limits=[0.05], defect_types=False)


def run_brute_force(root: Path) -> dict[str, dict[str, float]]:
    """Every distinct score as a threshold."""
    results = {}
    with ThreadPoolExecutor(1) as pool:
        for name, items in load_category(root, defect_types=True).items():
            thresholds = np.unique(np.concatenate([scores.ravel() for scores, _, _ in items]))[::-1]
            points = [sweep_point(items, threshold, pool) for threshold in [*thresholds, -np.inf]]
            results[name] = {str(limit): exact_area_under(points, limit) for limit in LIMITS}
            results[name]["thresholds"] = len(points)
    return results


def exact_area_under(points: Sequence[Sequence[float]], limit: float) -> float:
    """As ``area_under``, with the vertical steps of the curve at the limit told apart."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            total += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return total / limit
