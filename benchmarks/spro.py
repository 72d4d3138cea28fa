"""Time and memory of the exact AU-sPRO, against brute force and against a threshold-refinement evaluator.

Draws a category of the size of MVTec LOCO AD (330 test images of 1280 x 1600, smooth 256 x 256 maps), then measures,
each in a process of its own: ``SPRO`` as an evaluator calls it, ``evaluate_loco`` on a folder of full-size TIFF maps,
and the refinement evaluator on maps that it already holds in memory. Brute force is compared on a small category.

Wall time depends on what else the machine does; CPU time, of all threads together, much less.

    python benchmarks/spro.py --output benchmarks/results/spro.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

KINDS = ("logical_anomalies", "structural_anomalies")
CONFIG = [
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
    return np.load(root / "small" / image.parent.name / f"{image.stem}.npy")


def run_metric(root: Path) -> dict[str, dict[str, float]]:
    """What an evaluator does: update with batches, then ask the three metrics."""
    import torch
    from anomalib.data import ImageBatch

    from anomalib_npgmf.metrics import SPRO
    from anomalib_npgmf.metrics.ground_truth import list_test_images

    metrics = {kind: SPRO(kind.split("_")[0]) for kind in KINDS} | {"mean": SPRO()}
    images = list_test_images(root / "data" / "parts")
    for start in range(0, len(images), 32):
        paths = images[start : start + 32]
        batch = ImageBatch(
            image=torch.zeros(len(paths), 3, 1, 1),
            anomaly_map=torch.from_numpy(np.stack([small_map(root, path) for path in paths])),
            image_path=[str(path) for path in paths],
        )
        for metric in metrics.values():
            metric.update(batch)
    return {kind: {"0.05": float(metric.compute())} for kind, metric in metrics.items()}


def run_evaluate(root: Path) -> dict[str, dict[str, float]]:
    """All limits and defect types from a folder of TIFF maps."""
    from anomalib_npgmf.metrics import evaluate_loco

    return evaluate_loco(root / "data", "parts", root / "maps")["localization"]["auc_spro"]


def load_category(root: Path) -> dict[str, list[tuple[np.ndarray, list[tuple[np.ndarray, int]]]]]:
    """All full-size maps with their defects, per kind with the good images."""
    from anomalib_npgmf.metrics.ground_truth import image_size, list_test_images, read_defects, read_defects_config
    from anomalib_npgmf.metrics.scores import resize_map

    folder = root / "data" / "parts"
    config = read_defects_config(folder)
    loaded: dict[str, list] = {}
    for path in list_test_images(folder):
        defects = [] if path.parent.name == "good" else read_defects(path, config)
        item = (resize_map(small_map(root, path), image_size(path)), [(d.mask, d.saturation_area) for d in defects])
        loaded.setdefault(path.parent.name, []).append(item)
    return {kind: loaded["good"] + loaded[kind] for kind in KINDS}


def sweep_point(items: list, negatives: list[np.ndarray], threshold: float, pool: ThreadPoolExecutor) -> list[float]:
    """False positive rate and mean sPRO at one threshold, from the definition."""

    def look(pair: tuple) -> tuple[int, list[float]]:
        (scores, defects), negative = pair
        positive = scores > threshold
        overlaps = [min(np.count_nonzero(positive & mask) / area, 1.0) for mask, area in defects]
        return np.count_nonzero(positive & negative), overlaps

    seen = list(pool.map(look, zip(items, negatives, strict=True)))
    overlaps = [overlap for _, image in seen for overlap in image]
    return [sum(count for count, _ in seen) / sum(map(np.count_nonzero, negatives)), float(np.mean(overlaps))]


def negatives_of(items: list) -> list[np.ndarray]:
    nothing = [np.zeros(items[0][0].shape, bool)]
    return [~np.any([mask for mask, _ in defects] or nothing, axis=0) for _, defects in items]


def area_under(points: Sequence[Sequence[float]], limit: float) -> float:
    fpr, spro = np.array(points).T
    inside = fpr < limit
    x = np.append(fpr[inside], limit)
    y = np.append(spro[inside], np.interp(limit, fpr, spro))
    return float(np.trapezoid(y, x) / limit)


LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)


def run_refinement(root: Path) -> dict[str, dict[str, float]]:
    """Halve the ranks between neighbouring thresholds until curve points are within 0.01 of each other."""
    results = {}
    with ThreadPoolExecutor(2) as pool:
        for kind, items in load_category(root).items():
            negatives = negatives_of(items)
            ranks = np.sort(np.concatenate([scores[::16, ::16].ravel() for scores, _ in items]))[::-1]
            known = {0: [0.0, 0.0], len(ranks): [1.0, 1.0]}
            open_intervals = [(0, len(ranks))]
            while open_intervals:
                low, high = open_intervals.pop()
                if high - low < 2 or np.abs(np.subtract(known[low], known[high])).max() <= 0.01:
                    continue
                middle = (low + high) // 2
                known[middle] = sweep_point(items, negatives, ranks[middle], pool)
                open_intervals += [(low, middle), (middle, high)]
            points = [known[rank] for rank in sorted(known)]
            results[kind] = {str(limit): area_under(points, limit) for limit in LIMITS} | {"thresholds": len(points)}
    return results


def run_brute_force(root: Path) -> dict[str, dict[str, float]]:
    """Every distinct score as a threshold."""
    results = {}
    with ThreadPoolExecutor(1) as pool:
        for kind, items in load_category(root).items():
            negatives = negatives_of(items)
            thresholds = np.unique(np.concatenate([scores.ravel() for scores, _ in items]))[::-1]
            points = [sweep_point(items, negatives, threshold, pool) for threshold in [*thresholds, -np.inf]]
            results[kind] = {str(limit): exact_area_under(points, limit) for limit in LIMITS}
            results[kind]["thresholds"] = len(points)
    return results


def exact_area_under(points: Sequence[Sequence[float]], limit: float) -> float:
    """As ``area_under``, with the vertical steps of the curve at the limit told apart."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            total += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return total / limit


RUNS: dict[str, Callable[[Path], dict]] = {
    "SPRO": run_metric,
    "evaluate_loco": run_evaluate,
    "refinement": run_refinement,
    "brute_force": run_brute_force,
}


def child(name: str, root: Path) -> None:
    """Run one evaluator and print its values, seconds without imports, and peak memory above that of the imports."""
    import anomalib_npgmf.metrics  # noqa: F401

    cv2.setNumThreads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = RUNS[name](root)
    result = {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "peak_memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "auc_spro": values,
    }
    print(json.dumps(result))


def measure(name: str, root: Path) -> dict:
    command = [sys.executable, __file__, "--child", name, "--folder", str(root)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    cost = f"{result['seconds']} s, CPU {result['cpu_seconds']} s, {result['peak_memory_mb']} MB"
    print(f"{name}: {cost}, {result['auc_spro']}", flush=True)
    return result


def write_tiffs(root: Path, size: tuple[int, int]) -> None:
    import tifffile

    for path in sorted((root / "small").glob("*/*.npy")):
        target = root / "maps" / "parts" / "test" / path.parent.name / f"{path.stem}.tiff"
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, cv2.resize(np.load(path), size[::-1], interpolation=cv2.INTER_LINEAR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    results: dict = {
        "command": "python benchmarks/spro.py --output benchmarks/results/spro.json",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "full": {"images": 330, "size": [1280, 1600], "seed": 0},
        "small": {"images": 6, "size": [20, 25], "seed": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        full, small = Path(folder, "full"), Path(folder, "small")
        draw(full, (1280, 1600), (100, 110, 120), 256)
        for name in options.runs:
            if name == "brute_force":
                draw(small, (20, 25), (2, 2, 2), 16)
                write_tiffs(small, (20, 25))
                results["small"] |= {run: measure(run, small) for run in ("evaluate_loco", "brute_force")}
                continue
            if name == "evaluate_loco":
                write_tiffs(full, (1280, 1600))
            results["full"][name] = measure(name, full)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
