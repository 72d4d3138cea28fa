"""Memory bank: streaming build, its covering radius, search against anomalib's PatchCore, reduced and half banks.

    python studies/bank.py build        # 350 images x 4096 patches x 1536, the LOCO size of the paper
    python studies/bank.py cover [--photos FOLDER]
    python studies/bank.py search [--photos FOLDER]

``build`` uses spatially smooth synthetic patches, the others a randomly initialised wide_resnet50_2. Each part writes
``results/bank_<part>.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _common import Row, options, patches, smooth_patches, table
from torch import Tensor

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.benchmark.timing import measure, peak_memory
from anomalib_npgmf.structural import MemoryBank, covering_radius, select_coreset
from anomalib_npgmf.structural.collector import PatchCollector

Result = tuple[list[Row], dict[str, Any]]  # rows, and what else belongs to the results file
STORED: dict[str, dict[str, Any]] = {
    "float16": {"dtype": torch.float16},
    "float32, 512 dims": {"reduce_to": 512},
    "float32, 256 dims": {"reduce_to": 256},
}


def build(args: argparse.Namespace) -> Result:
    """Build the bank of the largest published setting and record its peak memory."""
    side, images = args.side, args.images or 350
    bank = MemoryBank(0.01, dtype=getattr(torch, args.dtype))
    start_cpu, start = time.process_time(), time.perf_counter()
    with peak_memory() as memory:
        for index in range(images):
            bank.append(smooth_patches(index, side), [f"{index:04d}"])
        collected = time.perf_counter() - start
        bank.finish(progress=True)
    row = {
        "images": images,
        "patches": images * side * side,
        "dtype": args.dtype,
        "bank": len(bank),
        "one_shot_float32_gb": images * side * side * 1536 * 4 / 1e9,
        "peak_gb": memory["peak_bytes"] / 1e9,
        "collect_wall_s": collected,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
    }
    return [row], {"features": "spatially smooth synthetic patches, d = 1536"}


def cover(args: argparse.Namespace) -> Result:
    """Compare the covering radius after thinning every image with that of the one-shot selection."""
    blocks, features = patches(args.images or 60, args.photos)
    embedding = blocks.flatten(0, 1)
    number_of = {tuple(patch[:4].tolist()): number for number, patch in enumerate(embedding)}
    rows = []
    for ratio in (0.01, 0.1):
        size = int(ratio * len(embedding))
        one_shot = covering_radius(embedding, select_coreset(embedding, size))
        for keep in (0.1, 0.25, 0.4, 0.5):
            if keep < 2 * ratio:
                continue
            collector = PatchCollector(torch.float32, budget=0, ratio=ratio)
            collector.keep = keep
            collector.append(blocks)
            kept = torch.cat(collector.ordered())
            chosen = [number_of[tuple(patch[:4].tolist())] for patch in kept[select_coreset(kept, size)]]
            radius = covering_radius(embedding, torch.tensor(chosen))
            row = {"ratio": ratio, "keep": keep, "one_shot": one_shot, "thinned": radius}
            rows.append(row | {"quotient": radius / one_shot})
    return rows, {"features": features, "patches": len(embedding)}


def search(args: argparse.Namespace) -> Result:
    """Compare latency and distances of the search with anomalib's PatchCore."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    blocks, features = patches(args.images or 60, args.photos)
    rows, baseline = [], 0.0
    for ratio in (0.01, 0.1):
        full = MemoryBank(ratio)
        full.append(blocks[:-4])
        full.finish()
        patchcore = PatchcoreModel(layers=("layer1",), backbone="resnet18", pre_trained=False)
        coreset = patchcore.memory_bank = full.embeddings + full.center
        searches: dict[str, Any] = {
            "anomalib": lambda q, model=patchcore: model.nearest_neighbors(q, n_neighbors=1)[0],
            "float32": full.search,
        }
        for name, change in STORED.items():
            bank = MemoryBank(1.0, **change)
            bank.fill(coreset)
            searches[name] = bank.search
        for images in (1, 4):
            queries = blocks[-4:][:images].flatten(0, 1)
            exact = None
            if images == 4:
                exact = torch.cdist(queries, coreset, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            for name, find in searches.items():
                seconds = measure(lambda find=find, q=queries: find(q), repeats=args.repeats)
                baseline = seconds["cpu_s"] if name == "anomalib" else baseline
                row = {"bank": len(full), "queries": len(queries), "search": name, **seconds}
                row["ratio_cpu"] = seconds["cpu_s"] / baseline
                rows.append(row | differences(find(queries), exact))
    return rows, {"features": features, "dim": blocks.shape[2]}


def differences(distances: Tensor, exact: Tensor | None) -> dict[str, float | None]:
    """How far distances are from exact ones: largest relative error and rank correlation."""
    if exact is None:
        return {"max_error": None, "rank_correlation": None}
    ranks = torch.stack([distances.argsort().argsort(), exact.argsort().argsort()]).double()
    error = ((distances - exact).abs() / exact).max()
    return {"max_error": float(error), "rank_correlation": float(torch.corrcoef(ranks)[0, 1])}


def main() -> None:
    parts = {"build": build, "cover": cover, "search": search}
    args = options(__doc__, *parts, photos=Path, images=int, side=64, dtype="float16", threads=2, repeats=5)
    rows, extra = parts[args.part](args)
    print(table(rows))
    print(write(args.out / f"bank_{args.part}.json", rows, **extra))


if __name__ == "__main__":
    main()
