"""Time and memory of the exact AU-sPRO, and of an approximation that refines thresholds.

Draws a category of the size of MVTec LOCO AD (330 test images of 1280 x 1600, smooth 256 x 256 maps), then measures,
each in a process of its own: ``SPRO`` as an evaluator calls it, ``evaluate_loco`` on a folder of full-size TIFF maps,
and the refinement on maps that are in memory already.

    python studies/spro.py measure    # writes results/spro.json
    python studies/spro.py report     # prints it as Markdown
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
from _common import Row, load, options, peak_memory, table
from anomalib.data import ImageBatch

from anomalib_npgmf.benchmark.record import hardware, versions, write
from anomalib_npgmf.metrics import SPRO, evaluate_loco
from anomalib_npgmf.metrics.evaluate import LIMITS
from anomalib_npgmf.metrics.ground_truth import (
    GOOD,
    KINDS,
    image_size,
    list_test_images,
    read_defects,
    read_defects_config,
)
from anomalib_npgmf.metrics.scores import FloatArray, resize_map

MAP_SIZE = 256
# defect type: pixel value, saturation threshold, smallest and largest area
DEFECTS: dict[str, tuple[int, float, tuple[int, int]]] = {
    "missing": (255, 0.5, (30000, 300000)),
    "additional": (254, 20000, (30000, 300000)),
    "scratch": (253, 1.0, (500, 20000)),
    "stain": (252, 2000, (3000, 20000)),
}
CATEGORY = "data/parts"
Values = dict[str, dict[str, float]]  # by kind or defect type, by limit


def draw(root: Path, size: tuple[int, int], counts: Sequence[int]) -> None:
    """Write images, masks and maps that find most defects, but not all of each; the maps small and of full size."""
    rng = np.random.default_rng(0)
    scale = size[0] * size[1] / (1280 * 1600)
    folder = root / CATEGORY
    for kind, count in zip((GOOD, *KINDS), counts, strict=True):
        names = list(DEFECTS)[:2] if kind == KINDS[0] else list(DEFECTS)[2:]
        for number in range(count):
            path = made(folder / "test" / kind / f"{number:03d}.png")
            cv2.imwrite(str(path), np.zeros(size, np.uint8))
            heat = cv2.GaussianBlur(rng.random((MAP_SIZE, MAP_SIZE), dtype=np.float32), (0, 0), 4) * 4
            for channel in range(0 if kind == GOOD else 1 + number % 2):
                value, _, areas = DEFECTS[names[int(rng.integers(2))]]
                radius = max(2, int(np.sqrt(scale * rng.uniform(*areas) / np.pi)))
                centre = [int(rng.integers(radius, n - radius)) for n in size[::-1]]
                mask = cv2.circle(np.zeros(size, np.uint8), centre, radius, value, -1)
                cv2.imwrite(str(made(folder / "ground_truth" / kind / path.stem / f"{channel:03d}.png")), mask)
                small = cv2.resize((mask > 0).astype(np.float32), heat.shape, interpolation=cv2.INTER_AREA)
                heat += rng.uniform(0, 0.6) * cv2.GaussianBlur(small, (0, 0), 6)
            np.save(made(root / "small" / kind / f"{number:03d}.npy"), heat)
            tifffile.imwrite(made(root / "maps/parts/test" / kind / f"{number:03d}.tiff"), resize_map(heat, size))
    keys = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    config = [dict(zip(keys, (name, v, t, t <= 1), strict=True)) for name, (v, t, _) in DEFECTS.items()]
    (folder / "defects_config.json").write_text(json.dumps(config))


def made(path: Path) -> Path:
    """The path, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def map_of(root: Path, image: Path, *, full_size: bool) -> FloatArray:
    """The map of an image, low-resolution or of the image's size."""
    small = np.load(root / "small" / image.parent.name / f"{image.stem}.npy")
    return resize_map(small, image_size(image)) if full_size else small


def run_metric(root: Path, *, full_size: bool = False) -> Values:
    """What an evaluator does: update with batches, then ask the three metrics."""
    metrics = {kind: SPRO(kind.split("_")[0]) for kind in KINDS} | {"mean": SPRO()}
    images = list_test_images(root / CATEGORY)
    for start in range(0, len(images), 16):
        paths = images[start : start + 16]
        batch = ImageBatch(
            image=torch.zeros(len(paths), 3, 1, 1),
            anomaly_map=torch.from_numpy(np.stack([map_of(root, path, full_size=full_size) for path in paths])),
            image_path=[str(path) for path in paths],
        )
        for metric in metrics.values():
            metric.update(batch)
    return {kind: {"0.05": float(metric.compute())} for kind, metric in metrics.items()}


def run_evaluate(root: Path) -> Values:
    """All limits and defect types from a folder of TIFF maps."""
    localization = evaluate_loco(root / "data", "parts", root / "maps")["localization"]
    return localization["auc_spro"] | localization["auc_spro_per_defect"]


def load_category(root: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """Per kind or defect type, for each image: full-size map, negative pixels, masks with saturation areas."""
    config = read_defects_config(root / CATEGORY)
    loaded: dict[str, list[Any]] = {name: [] for name in names}
    for path in list_test_images(root / CATEGORY):
        kind = path.parent.name
        defects = [] if kind == GOOD else read_defects(path, config)
        scores = map_of(root, path, full_size=True)
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
    """Values as of ``evaluate_loco``; thresholds are added until curve points are within 0.01 of their neighbours."""
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
            results[name] = {str(limit): area_under(points, limit) for limit in limits}
    return results


# name: text in the table, and the call
RUNS: dict[str, tuple[str, Callable[[Path], Values]]] = {
    "SPRO": ("`SPRO`, three metrics up to 0.05, maps of 256 x 256", run_metric),
    "SPRO_full_size_maps": ("the same, maps of the images' size", partial(run_metric, full_size=True)),
    "refinement_at_0.05": (
        "threshold refinement up to 0.05, maps in memory",
        partial(refinement, limits=[0.05], names=KINDS),
    ),
    "evaluate_loco": ("`evaluate_loco`, five limits, every defect type, from TIFF files", run_evaluate),
    "refinement": ("threshold refinement, the same values, maps in memory", refinement),
}


def run(name: str, root: Path, threads: int) -> Row:
    """Values, seconds and peak memory of one evaluator, in a process of its own."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    start, cpu_start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(), peak_memory() as memory:
        warnings.simplefilter("ignore")
        values = RUNS[name][1](root)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "peak_memory_mb": round(memory["added_bytes"] / 2**20),
        "auc_spro": values,
    }


def report(results: Row) -> None:
    """Print the cost of every run."""
    full = results["full"]
    heading = f"{full['images']} images of {full['size'][0]} x {full['size'][1]}"
    rows = []
    for name, (text, _) in RUNS.items():
        costs = {"s": f"{full[name]['seconds']:.1f}", "CPU s": f"{full[name]['cpu_seconds']:.1f}"}
        rows.append({heading: text} | costs | {"peak memory, MB": full[name]["peak_memory_mb"]})
    pairs = (("refinement_at_0.05", "SPRO"), ("refinement", "evaluate_loco"))
    up_to, everything = (full[slow]["cpu_seconds"] / full[fast]["cpu_seconds"] for slow, fast in pairs)
    print(table(rows))
    print(f"\nCPU time of refinement over ours: {up_to:.1f} up to 0.05, {everything:.1f} for all values.")


def main() -> None:
    args = options(__doc__, "measure", "report", size=[1280, 1600], counts=[100, 110, 120], threads=2)
    if args.part == "measure":
        results: Row = {"images": sum(args.counts), "size": args.size}
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), tuple(args.size), args.counts)
            for name in RUNS:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    results[name] = pool.apply(run, (name, Path(folder), args.threads))
        made_with = {"command": "python studies/spro.py measure", "environment": versions() | hardware()}
        write(args.out / "spro.json", made_with | {"full": results})
    report(load("spro", args.out))


if __name__ == "__main__":
    main()
