"""Memory bank: time, memory and accuracy of coreset selection and build; its search: bank_search.py.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/bank.py coreset  # the selection against anomalib's KCenterGreedy
    python studies/bank.py build     # 350 images of 4096 patches, the LOCO size of the paper
    python studies/bank.py growth    # builds of more and more images of 256 patches, each in a process of its own
    python studies/bank.py cover     # covering radius after thinning every image, against that of one selection
    python studies/bank.py gpu       # the selection on a GPU and on the CPU, and the search on the GPU
    python studies/bank.py accuracy --weights mobilenetv2_100.pth --root drawings
    python studies/bank.py thinning --weights mobilenetv2_100.pth --root drawings --seeds 100

Patches are smooth synthetic ones. ``accuracy`` scores the structural branch on drawn images: means over the categories,
mean and sample standard deviation over seeds, and of the difference from the exact selection in float32, seed by seed.
``thinning`` compares banks of all patches with those of images that were thinned first.

anomalib's selection takes equal steps and is timed over ``--baseline-steps`` of them. The environment variable keeps
its memory from growing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import pandas as pd
import torch
from _common import Row, alone, peak_memory, run_part, save, timed
from _drawn import DEFAULTS, KINDS, SIZE, DrawnCategory, backbone_of, scores, smoothed
from bank_search import SYNTHETIC, smooth_patches
from lightning import seed_everything
from torch import Tensor

from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.structural import MemoryBank, StructuralBranch, StructuralConfig, covering_radius, select_coreset
from anomalib_npgmf.structural.collector import PatchCollector
from anomalib_npgmf.structural.search import nearest

EXACT = "exact selection"
VARIANTS: dict[str, dict[str, Any]] = {
    EXACT: {"coreset_method": "exact"},
    "fast selection": {},
    "fast selection, float16 bank": {"bank_dtype": "float16"},
    "fast selection, reduced to 64 components": {"reduce_to": 64},
    "fast selection, reduced to 21 components": {"reduce_to": 21},
}
COLUMNS = [f"{metric} {kind}" for metric in ("AUROC", "sPRO") for kind in KINDS]
RATIOS = (0.01, 0.1)
MEMORY = {"all patches": 64.0, "thinned": 0.0}  # GB that patches may take before images are thinned
GROWTH = (50, 100, 200, 500, 1000, 2000)  # images


def coreset(args: argparse.Namespace) -> None:
    """Time, memory and covering radius of the selection of a tenth of the patches."""
    embedding = smooth_patches(range(args.images or 60), 32).flatten(0, 1)
    size = len(embedding) // 10
    rows: list[Row] = [{"method": "anomalib", "dtype": "float32", **k_center_greedy(embedding, size, args)}]
    for dtype, method in product((torch.float32, torch.float16), ("exact", "fast")):
        stored = embedding.to(dtype)
        with peak_memory() as memory:
            seconds, chosen = selected(stored, size, method, args.repeats)
        row: Row = {"method": method, "dtype": str(dtype)[6:], **seconds}
        row |= {"covering_radius": covering_radius(embedding, chosen)}
        row |= {"added_memory": memory["added_bytes"] / stored.nbytes}
        rows.append(row | {f"speedup_{c}": rows[0][f"{c}_s"] / row[f"{c}_s"] for c in ("wall", "cpu")})
    save(args.out / "coreset.json", rows, features=SYNTHETIC, size=size)


def selected(patches: Tensor, size: int, method: str, repeats: int) -> tuple[dict[str, float], Tensor]:
    """Seconds of a selection, and the indices that it chose."""
    found: list[Tensor] = []
    seconds = timed(lambda: found.append(select_coreset(patches, size, method=method)), repeats, warmup=0)
    return seconds, found[-1]


def k_center_greedy(embedding: Tensor, size: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of anomalib's selection, extrapolated from its first steps."""
    from anomalib.models.components import KCenterGreedy

    def run(count: int) -> None:
        seed_everything(0, verbose=False)
        sampler = KCenterGreedy(embedding, 0.5)
        sampler.coreset_size = count
        sampler.select_coreset_idxs()

    start, steps = timed(lambda: run(2)), args.baseline_steps
    partial = timed(lambda: run(2 + steps), repeats=1, warmup=0)
    return {key: start[key] + (partial[key] - start[key]) * (size - 2) / steps for key in start}


def build_one(images: int, side: int, dtype: torch.dtype, threads: int) -> Row:
    """Build the bank of images with ``side``² patches each, and search it for the patches of one more image."""
    torch.set_num_threads(threads)
    bank = MemoryBank(0.01, dtype=dtype)
    collect = 0.0
    with peak_memory() as memory:
        for index in range(images):
            block, start = smooth_patches([index], side), time.process_time()
            bank.append(block, [f"{index:05d}"])
            collect += time.process_time() - start
        start = time.process_time()
        bank.finish()
        select = time.process_time() - start
    queries = smooth_patches([-1], side)[0]
    return {
        "images": images,
        "patches": images * side**2,
        "bank": len(bank),
        "collect_cpu_s": collect,
        "select_cpu_s": select,
        "peak_gb": memory["peak_bytes"] / 1e9,
        "added_gb": memory["added_bytes"] / 1e9,
        "search_cpu_ms": 1e3 * timed(lambda: bank.search(queries), repeats=9)["cpu_s"],
    }


def build(args: argparse.Namespace) -> None:
    """Build the bank of the largest published setting."""
    row = build_one(args.images or 350, 64, torch.float16, args.threads)
    save(args.out / "bank_build.json", [row], features=SYNTHETIC)


def growth(args: argparse.Namespace) -> None:
    """Build banks of growing size; the results file is written after each."""
    rows: list[Row] = []
    for images in (number for number in GROWTH if number <= (args.images or number)):
        rows.append(alone(build_one, images, 16, torch.float32, args.threads))
        save(args.out / "growth.json", rows, features=SYNTHETIC)


def cover(args: argparse.Namespace) -> None:
    """Covering radius after thinning every image (to its own coreset), against one selection from all patches."""
    blocks = smooth_patches(range(args.images or 60), 32)
    embedding, ratio = blocks.flatten(0, 1), 0.01
    number_of = {tuple(patch[:4].tolist()): number for number, patch in enumerate(embedding)}
    size = int(ratio * len(embedding))
    one_shot = covering_radius(embedding, select_coreset(embedding, size))
    rows = []
    for keep in (0.1, 0.25, 0.4, 0.5):
        collector = PatchCollector(torch.float32, budget=0, ratio=ratio)
        collector.keep = keep
        collector.append(blocks)
        kept = torch.cat(collector.ordered())
        chosen = [number_of[tuple(patch[:4].tolist())] for patch in kept[select_coreset(kept, size)]]
        radius = covering_radius(embedding, torch.tensor(chosen))
        row = {"ratio": ratio, "keep": keep, "one_shot": one_shot, "thinned": radius}
        rows.append(row | {"quotient": radius / one_shot})
    save(args.out / "bank_cover.json", rows, features=SYNTHETIC, patches=len(embedding))


def gpu(args: argparse.Namespace) -> None:
    """Selection on GPU and CPU from the same patches, and the search for the patches of 16 images."""
    rows: list[Row] = []
    patches = smooth_patches(range(args.images or 60), 32).flatten(0, 1)
    size = len(patches) // 10
    for device, mode in product(("cuda", "cpu"), ("fast", "exact")):
        seconds, chosen = selected(patches.to(device), size, mode, repeats=1)
        row: Row = {"what": f"coreset, {mode}", "device": device, "patches": len(patches), "kept": size}
        rows.append(row | {"s": seconds["wall_s"], "covering_radius": covering_radius(patches.cuda(), chosen.cuda())})
    points, queries = patches[:size].cuda(), patches[-16 * 1024 :].contiguous().cuda()
    norms = points.square().sum(1)
    seconds = timed(lambda: nearest(queries, points, norms), args.repeats, warmup=3)
    rows.append({"what": "search", "device": "cuda", "patches": len(queries), "kept": size, "s": seconds["wall_s"]})
    save(args.out / "gpu_bank.json", rows, gpu=torch.cuda.get_device_name())


def evaluate(cell: DrawnCategory, change: dict[str, Any]) -> dict[str, float]:
    """AUROC and sPRO of the structural branch per kind of anomaly, in per cent."""
    levels = list(cell.features.values())
    torch.manual_seed(0)
    branch = StructuralBranch([m.shape[1] for m in levels], StructuralConfig(**{"coreset_ratio": 0.1} | change))
    branch.collect([m[cell.train] for m in levels], [f"{row:04d}" for row in cell.train])
    branch.finish()
    maps = torch.cat([branch([m[start : start + 8] for m in levels]) for start in range(0, len(cell.paths), 8)])
    maps = smoothed(maps, SIZE)
    return scores(cell.paths, maps.amax((1, 2, 3)), maps)


def evaluated(args: argparse.Namespace, variants: Mapping[Any, dict[str, Any]]) -> pd.DataFrame:
    """Metrics by variant, category and seed."""
    backbone = backbone_of(args, (3, 4))
    found = {}
    for seed, category in product(args.seeds, args.categories):
        cell = DrawnCategory(args.root, category, seed, backbone)
        found |= {(name, category, seed): evaluate(cell, change) for name, change in variants.items()}
    return pd.DataFrame.from_dict(found, orient="index")[COLUMNS].rename_axis(["bank", "category", "seed"])


def accuracy(args: argparse.Namespace) -> None:
    """Accuracy of the fast selection and of smaller banks against the exact selection."""
    means = evaluated(args, VARIANTS).groupby(["bank", "seed"], sort=False).mean()
    rows = []
    for name in VARIANTS:
        row: Row = {"bank": name}
        for column, gaps in (means.loc[name] - means.loc[EXACT]).items():
            row[column] = spread(means.loc[name][column], scale=1)
            row[f"{column}, difference"] = "" if name == EXACT else spread(gaps, signed=True, scale=1)
        rows.append(row)
    save(args.out / "bank_accuracy.json", rows, seeds=args.seeds, categories=args.categories)


def thinning(args: argparse.Namespace) -> None:
    """Accuracy lost if each image is first reduced to its own coreset, as where all patches exceed the memory."""
    kinds = product(RATIOS, MEMORY.items())
    variants = {f"{ratio}, {kept}": {"coreset_ratio": ratio, "collect_gb": gb} for ratio, (kept, gb) in kinds}
    found = evaluated(args, variants)
    rows = []
    for ratio in RATIOS:
        whole, thinned = (found.loc[f"{ratio}, {kept}"] for kept in MEMORY)
        row: Row = {"coreset ratio": ratio, "kept of an image": max(0.25, 4 * ratio)}
        for column in COLUMNS:
            row[column] = spread(whole[column], scale=1)
            row[f"{column}, thinned"] = spread(thinned[column] - whole[column], signed=True, scale=1)
        rows.append(row)
    save(args.out / "bank_thinning.json", rows, seeds=args.seeds, categories=args.categories)


@torch.no_grad()
def main() -> None:
    sizes = {"images": int, "repeats": 3, "baseline_steps": 200, "threads": 2, "seeds": [0, 1, 2]}
    run_part(__doc__, coreset, build, growth, cover, gpu, accuracy, thinning, **DEFAULTS | sizes)


if __name__ == "__main__":
    main()
