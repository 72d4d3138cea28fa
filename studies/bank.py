"""Memory bank: streaming build, its covering radius, search against anomalib's PatchCore, reduced and half banks.

    python studies/bank.py build        # 350 images x 4096 patches x 1536, the LOCO size of the paper
    python studies/bank.py cover [--photos FOLDER]
    python studies/bank.py search [--photos FOLDER]

``build`` uses spatially smooth synthetic patches, the others a randomly initialised wide_resnet50_2. Each part updates
its own entry of ``results/bank_<part>.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _common import (
    fix_threads,
    measure,
    patches,
    peak_memory,
    photographs,
    print_table,
    save,
    smooth_images,
    smooth_patches,
)
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank, covering_radius, select_coreset
from anomalib_npgmf.structural.collector import PatchCollector


def build(args: argparse.Namespace) -> None:
    """Build the bank of the largest published setting and record its peak memory."""
    side = args.side
    bank = MemoryBank(0.01, dtype=getattr(torch, args.dtype))
    start_cpu, start = time.process_time(), time.perf_counter()
    with peak_memory() as memory:
        for index in range(args.images):
            bank.append(smooth_patches(index, side), [f"{index:04d}"])
        collected = time.perf_counter() - start
        bank.finish(progress=True)
    row = {
        "images": args.images,
        "patches": args.images * side * side,
        "dtype": args.dtype,
        "bank": len(bank),
        "one_shot_float32_gb": args.images * side * side * 1536 * 4 / 1e9,
        "peak_gb": memory["peak_bytes"] / 1e9,
        "collect_wall_s": collected,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
    }
    print_table([row])
    print(save("bank_build", [row], features="spatially smooth synthetic patches, d = 1536"))


def cover(args: argparse.Namespace) -> None:
    """Compare the covering radius after thinning every image with that of the one-shot selection."""
    blocks = load(args)
    embedding = blocks.flatten(0, 1)
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
            rows_of = {tuple(row[:4].tolist()): i for i, row in enumerate(embedding)}
            chosen = [rows_of[tuple(row[:4].tolist())] for row in kept[select_coreset(kept, size)]]
            radius = covering_radius(embedding, torch.tensor(chosen))
            rows.append(
                {"ratio": ratio, "keep": keep, "one_shot": one_shot, "thinned": radius, "quotient": radius / one_shot}
            )
    print_table(rows)
    print(save("bank_cover", rows, features=features(args), patches=len(embedding)))


def search(args: argparse.Namespace) -> None:
    """Compare latency and distances of the search with anomalib's PatchCore."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    blocks = load(args)
    train, test = blocks[:-4], blocks[-4:]
    rows = []
    for ratio in (0.01, 0.1):
        full = MemoryBank(ratio)
        full.append(train)
        full.finish()
        patchcore = PatchcoreModel(layers=("layer1",), backbone="resnet18", pre_trained=False)
        patchcore.memory_bank = full.embeddings + full.center
        for images in (1, 4):
            queries = test[:images].flatten(0, 1)
            theirs = measure(lambda q=queries, p=patchcore: p.nearest_neighbors(q, n_neighbors=1), repeats=args.repeats)
            reference = (
                torch.cdist(queries, patchcore.memory_bank, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
                if images == 4
                else None
            )
            base = {"bank": len(full), "queries": len(queries)}
            found = patchcore.nearest_neighbors(queries, n_neighbors=1)[0]
            rows.append({**base, "search": "anomalib", **theirs, "ratio_cpu": 1.0, **effect(found, reference)})
            for name, bank in variants(full):
                seconds = measure(lambda q=queries, b=bank: b.search(q), repeats=args.repeats)
                row = {**base, "search": name, **seconds, "ratio_cpu": seconds["cpu_s"] / theirs["cpu_s"]}
                rows.append({**row, **effect(bank.search(queries), reference)})
    print_table(rows)
    print(save("bank_search", rows, features=features(args), dim=blocks.shape[2]))


def variants(full: MemoryBank) -> list[tuple[str, MemoryBank]]:
    """Return the same coreset stored in other ways."""
    banks = [("float32", full)]
    for name, dtype, reduce_to in (
        ("float16", torch.float16, None),
        ("float32, 512 dims", torch.float32, 512),
        ("float32, 256 dims", torch.float32, 256),
    ):
        bank = MemoryBank(1.0, dtype=dtype, reduce_to=reduce_to)
        bank.append((full.embeddings + full.center)[None])
        bank.finish()
        banks.append((name, bank))
    return banks


def effect(distances: Tensor, reference: Tensor | None) -> dict[str, float | None]:
    """Describe how far a map is from exact distances: largest relative error and rank correlation."""
    if reference is None:
        return {"max_error": None, "rank_correlation": None}
    ranks = torch.stack([distances.argsort().argsort(), reference.argsort().argsort()]).double()
    error = ((distances - reference).abs() / reference).max()
    return {"max_error": float(error), "rank_correlation": float(torch.corrcoef(ranks)[0, 1])}


def load(args: argparse.Namespace) -> Tensor:
    """Return patches ``[images, 1024, 1536]``."""
    images = photographs(args.photos, args.images, 256) if args.photos else smooth_images(args.images, 256)
    return patches(images)


def features(args: argparse.Namespace) -> str:
    """Say where the patches come from."""
    return "wide_resnet50_2, random weights, on " + ("photographs" if args.photos else "smooth noise images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("build", "cover", "search"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.images = args.images or (350 if args.part == "build" else 60)
    fix_threads(args.threads)
    {"build": build, "cover": cover, "search": search}[args.part](args)


if __name__ == "__main__":
    main()
