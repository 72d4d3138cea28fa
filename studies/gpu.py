"""Cost of the model on a GPU: latency, throughput, memory, operations; coreset selection and search of the memory bank.

    python studies/gpu.py models
    python studies/gpu.py models --compile --presets fast --batches 1
    python studies/gpu.py bank
    python studies/gpu.py models --presets fast --batches 1 --repeats 5      # a quick try

``models``: the whole model, the logical branch and the structural branch with the pass of their network, with the bank
that each preset keeps of 350 images, in float32 (without TF32) and bfloat16, called from Python and as a CUDA graph, or
compiled (``--compile``). ``bank``: a coreset of 10 % of patches in both modes, and the search of the patches of 16
images in it. A value is the median of ``--repeats`` calls, each of which waits for the GPU. Weights are random, which
changes no cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from _common import Call, Row, gflops, logical_map, measure, run_part, save, smooth_patches, with_bank
from torch import Tensor

from anomalib_npgmf.structural.coreset import covering_radius, select_coreset
from anomalib_npgmf.structural.search import nearest

IMAGES = 350
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def timed(call: Call, repeats: int) -> dict[str, float]:
    """Median time of a call that waits for the GPU, and the GPU's memory at its peak."""

    def finished() -> None:
        call()
        torch.cuda.synchronize()

    finished()
    torch.cuda.reset_peak_memory_stats()
    milliseconds = 1e3 * measure(finished, repeats, warmup=2)["wall_s"]
    return {"ms": milliseconds, "peak_mb": torch.cuda.max_memory_allocated() / 1e6}


def parts(model: Any) -> dict[str, Callable[[Tensor], object]]:
    """The whole model, and each branch with the pass of its network."""
    return {
        # `forward` first checks that the model was trained, which no graph can
        "whole model": lambda images: model.merge(model.branch_maps(images).maps),
        "logical branch": lambda images: logical_map(model, images),
        "structural branch": lambda images: model.structural(model.features(images, ["structural"]).structural),
    }


def captured(call: Call) -> Call:
    """The call as a CUDA graph: its kernels start without Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measured(call: Call, prepare: Callable[[Any], Any], repeats: int) -> dict[str, Any]:
    """What `timed` finds, or why it could not be measured."""
    try:
        return timed(prepare(call), repeats)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        return {"failed": str(error).strip().splitlines()[0]}


def models(args: argparse.Namespace) -> None:
    """Measure every preset; the results file is written after each precision."""
    ways: dict[str, Callable[[Any], Any]] = {"": lambda call: call, "CUDA graph": captured}
    if args.compile:
        ways = {"compiled": lambda call: torch.compile(call, dynamic=False)}
    rows: list[Row] = []
    for preset in args.presets:
        model = with_bank(preset, IMAGES, "cuda")
        for (precision, dtype), (way, prepare) in product(PRECISIONS.items(), ways.items()):
            for (what, part), batch in product(parts(model).items(), args.batches):
                if args.compile and what != "whole model":
                    continue
                images = torch.randn(batch, 3, *model.config.image_size, device="cuda")
                call = partial(part, images)
                row: Row = {"preset": preset, "what": what, "precision": precision, "way": way, "batch": batch}
                row |= {"image_size": max(model.config.image_size), "gflop_per_image": gflops(call) / batch}
                # weights that autocast keeps would outlive the graph that made them
                with torch.autocast("cuda", dtype, cache_enabled=False) if dtype else nullcontext():
                    row |= measured(call, prepare, args.repeats)
                rows.append(row | ({"images_per_s": 1e3 * batch / row["ms"]} if "ms" in row else {}))
            save(
                args.out / ("gpu_compiled.json" if args.compile else "gpu.json"), rows, gpu=torch.cuda.get_device_name()
            )


def bank(args: argparse.Namespace) -> None:
    """Selection on CPU and GPU from the same patches, and the search."""
    rows: list[Row] = []
    patches = smooth_patches(range(args.images), 32).flatten(0, 1)
    size = len(patches) // 10
    for device in ("cuda", "cpu"):
        moved = patches.to(device)
        for mode in ("fast", "exact"):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            chosen = select_coreset(moved, size, method=mode)
            torch.cuda.synchronize()
            row: Row = {"what": f"coreset, {mode}", "device": device, "patches": len(patches), "kept": len(chosen)}
            row |= {"s": time.perf_counter() - begin}
            rows.append(row | {"covering_radius": covering_radius(patches.cuda(), chosen.cuda())})
    points, queries = patches[:size].cuda(), patches[-16 * 1024 :].contiguous().cuda()
    norms = points.square().sum(1)
    found = timed(lambda: nearest(queries, points, norms), args.repeats)
    rows.append({"what": "search", "device": "cuda", "patches": len(queries), "kept": size, "s": found["ms"] / 1e3})
    save(args.out / "gpu_bank.json", rows, gpu=torch.cuda.get_device_name())


@torch.no_grad()
def main() -> None:
    presets = ["fast", "plus", "paper"]
    run_part(__doc__, models, bank, presets=presets, batches=[1, 16], repeats=20, images=60, compile=False, threads=8)


if __name__ == "__main__":
    main()
