"""Time and memory of the exact AU-sPRO, against brute force and against a threshold-refinement evaluator.

Draws a category of the size of MVTec LOCO AD (330 test images of 1280 x 1600, smooth 256 x 256 maps), then measures,
each in a process of its own: ``SPRO`` as an evaluator calls it, ``evaluate_loco`` on a folder of full-size TIFF maps,
and the refinement evaluator on maps that it already holds in memory. Brute force is compared on a small category.

Wall time depends on what else the machine does; CPU time, of all threads together, much less.

    python studies/spro.py --output studies/results/spro.json   # measure; --runs: only some, the others stay
    python studies/spro.py --table studies/results/spro.json    # print as Markdown
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
import threading
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import cv2
import numpy as np
from _spro_category import KINDS, draw, small_map, write_tiffs
from _spro_reference import run_brute_force, run_refinement, run_refinement_at_headline


def run_metric(root: Path, size: tuple[int, int] | None = None) -> dict[str, dict[str, float]]:
    """What an evaluator does: update with batches, then ask the three metrics."""
    import torch
    from anomalib.data import ImageBatch

    from anomalib_npgmf.metrics import SPRO
    from anomalib_npgmf.metrics.ground_truth import list_test_images

    metrics = {kind: SPRO(kind.split("_")[0]) for kind in KINDS} | {"mean": SPRO()}
    images = list_test_images(root / "data" / "parts")
    for start in range(0, len(images), 16):
        paths = images[start : start + 16]
        maps = [small_map(root, path) for path in paths]
        if size:
            maps = [cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR) for scores in maps]
        batch = ImageBatch(
            image=torch.zeros(len(paths), 3, 1, 1),
            anomaly_map=torch.from_numpy(np.stack(maps)),
            image_path=[str(path) for path in paths],
        )
        for metric in metrics.values():
            metric.update(batch)
    return {kind: {"0.05": float(metric.compute())} for kind, metric in metrics.items()}


def run_metric_full_size(root: Path) -> dict[str, dict[str, float]]:
    """The same for a model whose maps have the size of the images."""
    return run_metric(root, (1280, 1600))


def run_evaluate(root: Path) -> dict[str, dict[str, float]]:
    """All limits and defect types from a folder of TIFF maps."""
    from anomalib_npgmf.metrics import evaluate_loco

    localization = evaluate_loco(root / "data", "parts", root / "maps")["localization"]
    return localization["auc_spro"] | localization["auc_spro_per_defect"]


RUNS: dict[str, Callable[[Path], dict]] = {
    "SPRO": run_metric,
    "SPRO_full_size_maps": run_metric_full_size,
    "evaluate_loco": run_evaluate,
    "refinement_at_0.05": run_refinement_at_headline,
    "refinement": run_refinement,
    "brute_force": run_brute_force,
}


class AnonymousMemory(threading.Thread):
    """Samples the memory of this process that is no mapped file; Linux only, else 0."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.first = self.now()

    def now(self) -> int:
        """Kilobytes at this moment."""
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.peak = max(self.peak, self.now() - self.first)
            time.sleep(0.02)


def child(name: str, root: Path) -> None:
    """Run one evaluator and print its values, seconds without imports, and peak memory above that of the imports."""
    import anomalib_npgmf.metrics  # noqa: F401

    cv2.setNumThreads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    anonymous = AnonymousMemory()
    anonymous.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = RUNS[name](root)
    result = {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "peak_memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "peak_anonymous_memory_mb": round(anonymous.peak / 1024),
        "auc_spro": values,
    }
    print(json.dumps(result))


def measure(name: str, root: Path) -> dict:
    command = [sys.executable, __file__, "--child", name, "--folder", str(root)]
    load = os.getloadavg()[0]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    result["load_average_at_start"] = round(load, 2)
    cost = f"{result['seconds']} s, CPU {result['cpu_seconds']} s, {result['peak_memory_mb']} MB"
    print(f"{name}: {cost}, {result['auc_spro']}", flush=True)
    return result


WHAT = {
    "SPRO": "`SPRO`, three metrics up to 0.05, maps of 256 x 256",
    "SPRO_full_size_maps": "the same, maps of the images' size",
    "refinement_at_0.05": "threshold refinement up to 0.05, maps in memory",
    "evaluate_loco": "`evaluate_loco`, five limits, every defect type, from TIFF files",
    "refinement": "threshold refinement, the same values, maps in memory",
}


def print_table(results: dict) -> None:
    full, small = results["full"], results["small"]
    print(f"| {full['images']} images of {full['size'][0]} x {full['size'][1]} | s | CPU s | peak memory, MB |")
    print("|---|---:|---:|---:|")
    for name, text in WHAT.items():
        run = full[name]
        print(f"| {text} | {run['seconds']:.1f} | {run['cpu_seconds']:.1f} | {run['peak_memory_mb']} |")
    ratios = [
        full[slow]["cpu_seconds"] / full[fast]["cpu_seconds"]
        for slow, fast in (("refinement_at_0.05", "SPRO"), ("refinement", "evaluate_loco"))
    ]
    print(f"\nCPU time of refinement over ours: {ratios[0]:.1f} up to 0.05, {ratios[1]:.1f} for all values.")
    brute, ours = small["brute_force"], small["evaluate_loco"]
    gaps = [
        abs(brute["auc_spro"][name][str(limit)] - value)
        for name, values in ours["auc_spro"].items()
        for limit, value in values.items()
        if name in brute["auc_spro"]
    ]
    print(
        f"Brute force on {small['images']} images of {small['size'][0]} x {small['size'][1]}: "
        f"{brute['cpu_seconds']:.1f} CPU s against {ours['cpu_seconds']:.2f}, largest difference {max(gaps):.0e}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--table", type=Path, help="print the results in this file as Markdown")
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    if options.table:
        print_table(json.loads(options.table.read_text()))
        return
    earlier = json.loads(options.output.read_text()) if options.output and options.output.is_file() else {}
    results: dict = {
        "command": "python studies/spro.py --output studies/results/spro.json",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "full": earlier.get("full", {}) | {"images": 330, "size": [1280, 1600], "seed": 0},
        "small": earlier.get("small", {}) | {"images": 9, "size": [32, 40], "seed": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        full, small = Path(folder, "full"), Path(folder, "small")
        draw(full, (1280, 1600), (100, 110, 120), 256)
        for name in options.runs:
            if name == "brute_force":
                draw(small, (32, 40), (3, 3, 3), 24)
                write_tiffs(small, (32, 40))
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
