"""Coreset selection against anomalib's ``KCenterGreedy``: time, peak memory and covering radius.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/coreset.py [--photos FOLDER]

Patches come from a randomly initialised wide_resnet50_2 on photographs (``--photos``) or on smooth noise images. Every
step of the literal algorithm reads all patches and costs the same, so the baseline is timed over ``--baseline-steps``
steps and scaled to the number of centres; with ``--baseline-steps 0`` it runs in full. The environment variable keeps
the baseline's memory from growing, which otherwise reaches many gigabytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from _common import Row, options, patches, table
from lightning import seed_everything
from torch import Tensor

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.benchmark.timing import measure, peak_memory
from anomalib_npgmf.structural import covering_radius, select_coreset


def baseline(embedding: Tensor, size: int, steps: int) -> Row:
    """Time anomalib's selection, and give its covering radius where it ran in full."""
    from anomalib.models.components import KCenterGreedy

    indices: list[int] = []

    def run(count: int) -> None:
        seed_everything(0, verbose=False)
        sampler = KCenterGreedy(embedding, 0.5)
        sampler.coreset_size = count
        indices[:] = sampler.select_coreset_idxs()

    if steps == 0:
        seconds = measure(lambda: run(size), repeats=1, warmup=0)
        return {**seconds, "covering_radius": covering_radius(embedding, torch.tensor(indices))}
    start = measure(lambda: run(2), repeats=3)
    partial = measure(lambda: run(2 + steps), repeats=1, warmup=0)
    scaled = {key: start[key] + (partial[key] - start[key]) * (size - 2) / steps for key in start}
    return {**scaled, "covering_radius": None}


def main() -> None:
    sizes = {"patches": 60_000, "ratio": 0.1}
    args = options(__doc__, photos=Path, **sizes, threads=2, repeats=3, baseline_steps=200)
    blocks, features = patches(-(-args.patches // 1024), args.photos)
    embedding = blocks.flatten(0, 1)[: args.patches].contiguous()
    size = int(args.ratio * len(embedding))
    rows: list[Row] = [{"method": "anomalib", "dtype": "float32", **baseline(embedding, size, args.baseline_steps)}]
    for dtype in (torch.float32, torch.float16):
        stored = embedding.to(dtype)
        for method in ("exact", "fast"):
            found: list[Tensor] = []

            def select(stored: Tensor = stored, method: str = method, found: list[Tensor] = found) -> None:
                found[:] = [select_coreset(stored, size, method=method)]

            with peak_memory() as memory:
                seconds = measure(select, repeats=args.repeats, warmup=0)
            row = {"method": method, "dtype": str(dtype)[6:], **seconds}
            row["covering_radius"] = covering_radius(embedding, found[0])
            rows.append(row | {"added_memory": memory["added_bytes"] / stored.nbytes})
    for row in rows:
        row |= {f"speedup_{clock}": rows[0][f"{clock}_s"] / row[f"{clock}_s"] for clock in ("wall", "cpu")}
    print(table([{key: row.get(key, "") for key in rows[-1]} for row in rows]))
    extra = {"features": features, "patches": len(embedding), "dim": embedding.shape[1], "size": size}
    print(write(args.out / "coreset.json", rows, **extra))


if __name__ == "__main__":
    main()
