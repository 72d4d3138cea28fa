"""Coreset selection against anomalib's ``KCenterGreedy``: time, peak memory and covering radius.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/coreset.py [--photos FOLDER]

Patches come from a randomly initialised wide_resnet50_2 on photographs (``--photos``) or on smooth noise images. Every
step of the literal algorithm reads all patches and costs the same, so the baseline is timed over ``--baseline-steps``
steps and scaled to the number of centres; with ``--baseline-steps 0`` it runs in full. The environment variable keeps
the baseline's memory from growing, which otherwise reaches many gigabytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _common import fix_threads, measure, patches, peak_memory, photographs, print_table, save, smooth_images
from lightning import seed_everything

from anomalib_npgmf.structural import covering_radius, select_coreset


def baseline(embedding: torch.Tensor, size: int, steps: int) -> tuple[dict[str, float], float | None]:
    """Time anomalib's selection, and give its covering radius where it ran in full."""
    from anomalib.models.components import KCenterGreedy

    def run(count: int) -> list[int]:
        seed_everything(0, verbose=False)
        sampler = KCenterGreedy(embedding, 0.5)
        sampler.coreset_size = count
        return sampler.select_coreset_idxs()

    if steps == 0:
        indices: list[int] = []
        seconds = measure(lambda: indices.extend(run(size)), repeats=1, warmup=0)
        return seconds, covering_radius(embedding, torch.tensor(indices))
    start = measure(lambda: run(2), repeats=3)
    partial = measure(lambda: run(2 + steps), repeats=1, warmup=0)
    scaled = {key: start[key] + (partial[key] - start[key]) * (size - 2) / steps for key in start}
    return scaled, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--patches", type=int, default=60_000)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baseline-steps", type=int, default=200)
    args = parser.parse_args()
    fix_threads(args.threads)
    count = -(-args.patches // 1024)
    images = photographs(args.photos, count, 256) if args.photos else smooth_images(count, 256)
    embedding = patches(images).flatten(0, 1)[: args.patches].contiguous()
    size = int(args.ratio * len(embedding))

    theirs, radius = baseline(embedding, size, args.baseline_steps)
    rows = [{"method": "anomalib", "dtype": "float32", **theirs, "covering_radius": radius}]
    for dtype in (torch.float32, torch.float16):
        stored = embedding.to(dtype)
        for method in ("exact", "fast"):
            found: list[torch.Tensor] = []
            with peak_memory() as memory:
                seconds = measure(
                    lambda m=method, s=stored, f=found: f.append(select_coreset(s, size, method=m)),
                    repeats=args.repeats,
                    warmup=0,
                )
            indices = found[-1]
            added = memory["added_bytes"] / stored.nbytes
            radius = covering_radius(embedding, indices)
            rows.append(
                {"method": method, "dtype": str(dtype)[6:], **seconds, "covering_radius": radius, "added_memory": added}
            )
    for row in rows:
        row["speedup_wall"] = rows[0]["wall_s"] / row["wall_s"]
        row["speedup_cpu"] = rows[0]["cpu_s"] / row["cpu_s"]
    print_table([{key: row.get(key, "") for key in rows[-1]} for row in rows])
    features = "wide_resnet50_2, random weights, on " + ("photographs" if args.photos else "smooth noise images")
    print(save("coreset", rows, features=features, patches=len(embedding), dim=embedding.shape[1], size=size))


if __name__ == "__main__":
    main()
