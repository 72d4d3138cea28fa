"""Time and memory of the exact AU-sPRO, against brute force and against a threshold-refinement evaluator.

Draws a category of the size of MVTec LOCO AD (330 test images of 1280 x 1600, smooth 256 x 256 maps), then measures,
each in a process of its own: ``SPRO`` as an evaluator calls it, ``evaluate_loco`` on a folder of full-size TIFF maps,
and the refinement evaluator on maps that it already holds in memory. Brute force is compared on a small category.

Wall time depends on what else the machine does; CPU time, of all threads together, much less.

    python studies/spro.py --output studies/results/spro.json   # measure; --runs: only some, the others stay
    python studies/spro.py --table studies/results/spro.json    # print as Markdown
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from _common import Row, options
from _spro_reference import KINDS, Values, brute_force, category, draw, refinement, small_map, write_tiffs
from anomalib.data import ImageBatch

from anomalib_npgmf.benchmark.record import read, write
from anomalib_npgmf.benchmark.timing import peak_memory
from anomalib_npgmf.metrics import SPRO, evaluate_loco
from anomalib_npgmf.metrics.ground_truth import image_size, list_test_images
from anomalib_npgmf.metrics.scores import resize_map


def run_metric(root: Path, *, full_size: bool = False) -> Values:
    """What an evaluator does: update with batches, then ask the three metrics."""
    metrics = {kind: SPRO(kind.split("_")[0]) for kind in KINDS} | {"mean": SPRO()}
    images = list_test_images(category(root))
    for start in range(0, len(images), 16):
        paths = images[start : start + 16]
        maps = [small_map(root, path) for path in paths]
        if full_size:
            maps = [resize_map(scores, image_size(path)) for scores, path in zip(maps, paths, strict=True)]
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


# name: what it is called in the table, and the call
RUNS: dict[str, tuple[str, Callable[[Path], Values]]] = {
    "SPRO": ("`SPRO`, three metrics up to 0.05, maps of 256 x 256", run_metric),
    "SPRO_full_size_maps": ("the same, maps of the images' size", partial(run_metric, full_size=True)),
    "refinement_at_0.05": (
        "threshold refinement up to 0.05, maps in memory",
        partial(refinement, limits=[0.05], names=KINDS),
    ),
    "evaluate_loco": ("`evaluate_loco`, five limits, every defect type, from TIFF files", run_evaluate),
    "refinement": ("threshold refinement, the same values, maps in memory", refinement),
    "brute_force": ("every distinct score as a threshold", brute_force),
}


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def child(name: str, root: Path) -> None:
    """Run one evaluator and print its values, seconds without imports, and peak memory above that of the imports."""
    cv2.setNumThreads(1)
    first, samples, done = anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            samples.append(anonymous_bytes() - first)

    sampler = threading.Thread(target=sample)
    sampler.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(), peak_memory() as memory:
        warnings.simplefilter("ignore")
        values = RUNS[name][1](root)
    result = {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "peak_memory_mb": round(memory["added_bytes"] / 2**20),
        "peak_anonymous_memory_mb": round(max(samples) / 2**20),
        "auc_spro": values,
    }
    done.set()
    sampler.join()
    print(json.dumps(result))


def measure(name: str, root: Path) -> Row:
    """Run one evaluator in a process of its own."""
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--child", name, "--folder", str(root)]
    result: Row = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )
    cost = f"{result['seconds']} s, CPU {result['cpu_seconds']} s, {result['peak_memory_mb']} MB"
    print(f"{name}: {cost}, {result['auc_spro']}", flush=True)
    return result | {"load_average_at_start": round(load, 2)}


def print_table(results: Row) -> None:
    """Cost of every run, and how far brute force is from the exact values."""
    full, small = results["full"], results["small"]
    print(f"| {full['images']} images of {full['size'][0]} x {full['size'][1]} | s | CPU s | peak memory, MB |")
    print("|---|---:|---:|---:|")
    for name, (text, _) in list(RUNS.items())[:-1]:
        run = full[name]
        print(f"| {text} | {run['seconds']:.1f} | {run['cpu_seconds']:.1f} | {run['peak_memory_mb']} |")
    pairs = (("refinement_at_0.05", "SPRO"), ("refinement", "evaluate_loco"))
    up_to, everything = (full[slow]["cpu_seconds"] / full[fast]["cpu_seconds"] for slow, fast in pairs)
    print(f"\nCPU time of refinement over ours: {up_to:.1f} up to 0.05, {everything:.1f} for all values.")
    brute, ours = small["brute_force"], small["evaluate_loco"]
    gaps = [
        abs(values[limit] - ours["auc_spro"][name][limit])
        for name, values in brute["auc_spro"].items()
        for limit in ours["auc_spro"][name]
    ]
    print(
        f"Brute force on {small['images']} images of {small['size'][0]} x {small['size'][1]}: "
        f"{brute['cpu_seconds']:.1f} CPU s against {ours['cpu_seconds']:.2f}, largest difference {max(gaps):.0e}."
    )


def main() -> None:
    sizes = {"runs": list(RUNS), "size": [1280, 1600], "counts": [100, 110, 120], "threads": 2}
    args = options(__doc__, output=Path, table=Path, child=str, folder=Path, **sizes)
    if args.child:
        child(args.child, args.folder)
        return
    if args.table:
        print_table(read(args.table))
        return
    earlier = read(args.output) if args.output and args.output.is_file() else {}
    results: Row = {
        "command": "python studies/spro.py --output studies/results/spro.json",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "full": earlier.get("full", {}) | {"images": sum(args.counts), "size": args.size, "seed": 0},
        "small": earlier.get("small", {}) | {"images": 9, "size": [32, 40], "seed": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        full, small = Path(folder, "full"), Path(folder, "small")
        draw(full, tuple(args.size), args.counts, 256)
        draw(small, (32, 40), (3, 3, 3), 24)
        write_tiffs(small)
        for name in args.runs:
            if name == "brute_force":
                results["small"] |= {run: measure(run, small) for run in ("evaluate_loco", "brute_force")}
                continue
            if name == "evaluate_loco":
                write_tiffs(full)
            results["full"][name] = measure(name, full)
    if args.output:
        write(args.output, results)


if __name__ == "__main__":
    main()
