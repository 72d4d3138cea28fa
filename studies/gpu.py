"""What the model costs on a GPU: latency, throughput, memory, operations; and selection and search of the memory bank.

    python studies/gpu.py models
    python studies/gpu.py bank
    python studies/gpu.py models --presets fast --batches 1 --repeats 5      # a quick try

``models``: the whole model, the logical branch and the structural branch with the pass of their network, with the bank
that each preset keeps of 350 images, in float32 (without TF32), bfloat16, and bfloat16 compiled with CUDA graphs.
``bank``: a coreset of 10 % of patches in both modes, and the search of the patches of 16 images in it. A figure is the
median of ``--repeats`` calls, each of which waits for the GPU. Weights are random, which changes no cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from _common import Row, gflops, ready, run_part, save, smooth_patches
from torch import Tensor

from anomalib_npgmf.structural.coreset import covering_radius, select_coreset
from anomalib_npgmf.structural.search import nearest
from anomalib_npgmf.torch_model import NpgmfModel

IMAGES = 350
WEIGHTS = {"text_prior": "random", "backbone_weights": "random", "structural_backbone_weights": "random"}
PRECISIONS = {
    "float32": (None, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16 compiled": (torch.bfloat16, True),
}


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median time of a call and the memory of the GPU at its peak, after three calls for warm-up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = torch.tensor(seconds).median().item()
    return {"ms": 1e3 * median, "peak_mb": torch.cuda.max_memory_allocated() / 1e6}


def built(preset: str) -> NpgmfModel:
    """A preset on the GPU with the bank that it keeps of 350 images."""
    torch.manual_seed(0)
    model = ready(preset, **WEIGHTS).cuda()
    assert model.structural is not None
    image = torch.randn(1, 3, *model.config.image_size, device="cuda")
    patches = model.structural.embed(model.features(image).structural).flatten(0, 2)
    size = int(model.config.structural.coreset_ratio * IMAGES * len(patches))
    model.structural.bank.fill(torch.randn(size, patches.shape[1], device="cuda"))
    return model


def parts(model: Any) -> dict[str, Callable[[Tensor], object]]:
    """The whole model, and each branch with the pass of its network."""

    def logical(images: Tensor) -> object:
        features = model.features(images, ["logical"]).logical
        return model.logical.anomaly_map(features, model.logical(features, reconstruct=False))

    def structural(images: Tensor) -> object:
        return model.structural(model.features(images, ["structural"]).structural)

    return {"whole model": model, "logical branch": logical, "structural branch": structural}


def models(args: argparse.Namespace) -> None:
    """Measure every preset; the results file is written after each."""
    rows: list[Row] = []
    for preset in args.presets:
        model = built(preset)
        operations = {}
        for precision, (dtype, compiled) in PRECISIONS.items():
            for what, call in parts(model).items():
                if compiled:
                    if what != "whole model":
                        continue
                    call = torch.compile(call, mode="reduce-overhead", dynamic=False)
                for batch in args.batches:
                    images = torch.randn(batch, 3, *model.config.image_size, device="cuda")
                    if what not in operations:
                        operations[what] = gflops(lambda call=call, images=images: call(images)) / batch
                    context = torch.autocast("cuda", dtype) if dtype else nullcontext()
                    try:
                        with context:
                            found = timed(lambda call=call, images=images: call(images), args.repeats)
                    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:  # memory, or what compiles
                        found = {"failed": str(error).strip().splitlines()[0]}
                    row: Row = {"preset": preset, "what": what, "precision": precision, "batch": batch}
                    row |= {"image_size": max(model.config.image_size), "gflop_per_image": operations[what]} | found
                    rows.append(row | ({"images_per_s": 1e3 * batch / found["ms"]} if "ms" in found else {}))
            save(args.out / "gpu.json", rows, gpu=torch.cuda.get_device_name())


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
    presets = ["paper", "fast", "plus"]
    run_part(__doc__, models, bank, presets=presets, batches=[1, 16], repeats=30, images=60, threads=8)


if __name__ == "__main__":
    main()
