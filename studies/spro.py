"""Time and memory of the exact AU-sPRO.

Draws a category of the size of MVTec LOCO AD (330 test images of 1280 x 1600, smooth 256 x 256 maps), then measures,
each in a process of its own: ``SPRO`` as an evaluator calls it, with these maps and with maps of the size of the
images, and ``evaluate_loco`` on a folder of TIFF maps of that size.

    python studies/spro.py measure    # writes results/spro.json
    python studies/spro.py report     # prints it as Markdown
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
import torch
from _common import Row, alone, measured, peak_memory, run_part, save, table, timed
from anomalib.data import ImageBatch

from anomalib_npgmf.metrics import SPRO, evaluate_loco
from anomalib_npgmf.metrics.ground_truth import GOOD, KINDS, image_size, list_test_images
from anomalib_npgmf.metrics.scores import resize_map

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


def run_metric(root: Path, *, full_size: bool = False) -> Values:
    """What an evaluator does: update with batches, then ask the three metrics."""
    metrics = {kind: SPRO(kind.split("_")[0]) for kind in KINDS} | {"mean": SPRO()}
    images = list_test_images(root / CATEGORY)
    for start in range(0, len(images), 16):
        paths = images[start : start + 16]
        maps = [np.load(root / "small" / path.parent.name / f"{path.stem}.npy") for path in paths]
        if full_size:
            maps = [resize_map(small, image_size(path)) for small, path in zip(maps, paths, strict=True)]
        batch = ImageBatch(
            image=torch.zeros(len(paths), 3, 1, 1),
            anomaly_map=torch.from_numpy(np.stack(maps)),
            image_path=[str(path) for path in paths],
        )
        for metric in metrics.values():
            metric.update(batch)
    return {kind: {"0.05": float(metric.compute())} for kind, metric in metrics.items()}


def run_evaluate(root: Path) -> Values:
    """All limits and defect types from a folder of TIFF maps."""
    localization = evaluate_loco(root / "data", "parts", root / "maps")["localization"]
    return localization["auc_spro"] | localization["auc_spro_per_defect"]


# text in the table: the call
RUNS: dict[str, Callable[[Path], Values]] = {
    "`SPRO`, three metrics up to 0.05, maps of 256 x 256": run_metric,
    "the same, maps of the images' size": partial(run_metric, full_size=True),
    "`evaluate_loco`, five limits, every defect type, from TIFF files": run_evaluate,
}


def run(name: str, root: Path, threads: int) -> tuple[Row, Values]:
    """Cost and values of one evaluator."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    values: Values = {}
    with warnings.catch_warnings(), peak_memory() as memory:
        warnings.simplefilter("ignore")
        seconds = timed(lambda: values.update(RUNS[name](root)), repeats=1, warmup=0)
    costs = {"s": round(seconds["wall_s"], 2), "CPU s": round(seconds["cpu_s"], 2)}
    return {"evaluator": name} | costs | {"peak memory, MB": round(memory["added_bytes"] / 2**20)}, values


def measure(args: argparse.Namespace) -> None:
    """Draw the category and run every evaluator on it."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), tuple(args.size), args.counts)
        found = {name: alone(run, name, Path(folder), args.threads) for name in RUNS}
    values = {name: of_run for name, (_, of_run) in found.items()}
    rows = [row for row, _ in found.values()]
    save(args.out / "spro.json", rows, images=sum(args.counts), size=args.size, auc_spro=values)


def report(args: argparse.Namespace) -> None:
    """Print the cost of every run."""
    result = measured("spro", args.out)
    heading = f"{result['images']} images of {result['size'][0]} x {result['size'][1]}"
    columns = {"evaluator": heading, "s": "s", "CPU s": "CPU s", "peak memory, MB": "peak memory, MB"}
    print(table(pd.DataFrame(result["rows"])[list(columns)].rename(columns=columns).round(1).astype(str)))


if __name__ == "__main__":
    run_part(__doc__, measure, report, size=[1280, 1600], counts=[100, 110, 120], threads=2)
