"""Latency of the whole model (preset ``fast``) against anomalib's PatchCore and ReverseDistillation on a CPU.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/latency.py
    python studies/latency.py --backbones resnet18 --batches 1 --seconds 5      # a quick try

Same backbone (random weights whose batch normalisation has seen the images), image size and bank. The models take
turns, so that a disturbance hits all of them; every figure is the median over the turns after one turn of warm-up, and
every ratio the median of the turns' ratios. Images are smooth noise, and the bank holds patches of such images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from _common import fix_threads, gflops, print_table, save, smooth_images
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from torch import Tensor, nn

from anomalib_npgmf.config import resolve
from anomalib_npgmf.torch_model import NpgmfModel

SIZE = 256
Call = Callable[[], object]


def settle(network: nn.Module, images: Tensor) -> None:
    """Give every batch normalisation the statistics of the images, so that activations keep a natural scale."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    network(images)
    for norm in norms:
        norm.eval()


def layers_of(backbone: str, levels: Iterable[int]) -> list[str]:
    """Names of the layers whose strides are 2^k."""
    info: Any = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
    by_stride = dict(zip(info.reduction(), info.module_name(), strict=True))
    return [by_stride[2**level] for level in levels]


def our_model(backbone: str, images: Tensor, size: int) -> tuple[NpgmfModel, Tensor]:
    """Preset ``fast`` with a bank of ``size`` patches, calibrated; and the bank before it is reduced."""
    model = NpgmfModel(resolve("fast", {"backbone": backbone, "backbone_weights": "random"})).eval()
    assert model.encoder is not None
    assert model.structural is not None
    settle(model.encoder, images)
    bank = model.structural.bank
    patches = model.structural.embed(model.features(images).structural).flatten(0, 2)
    if len(patches) < size:
        msg = f"{len(images)} images have {len(patches)} patches, fewer than a bank of {size}."
        raise ValueError(msg)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:size]]
    bank.fill(chosen)
    model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    return model, chosen


def rivals(backbone: str, bank: Tensor, images: Tensor) -> dict[str, nn.Module]:
    """Models of anomalib, as far as they allow the backbone."""
    patchcore = PatchcoreModel(layers=layers_of(backbone, (3, 4)), backbone=backbone, pre_trained=False).eval()
    settle(patchcore.feature_extractor, images)
    patchcore.memory_bank = bank
    found: dict[str, nn.Module] = {"PatchCore": patchcore}
    if "resnet" in backbone:
        found["ReverseDistillation"] = ReverseDistillationModel(
            backbone=backbone,
            input_size=(SIZE, SIZE),
            layers=("layer1", "layer2", "layer3"),
            anomaly_map_mode=AnomalyMapGenerationMode.ADD,
            pre_trained=False,
        ).eval()
        settle(found["ReverseDistillation"], images)
    return found


def calls(model: NpgmfModel, others: dict[str, nn.Module], images: Tensor) -> dict[str, Call]:
    """What is timed: every model as a whole, and our parts after the pass of the encoder."""
    assert model.logical is not None
    features = model.features(images)
    maps = model.branch_maps(images, reconstruct=False).maps
    logical, structural = model.logical, model.structural
    return {
        **{name: lambda m=other: m(images) for name, other in others.items()},
        "NPGMF": lambda: model(images),
        "  encoder": lambda: model.features(images),
        "  logical branch": lambda: logical.anomaly_map(features.logical, logical(features.logical, reconstruct=False)),
        "  structural branch": lambda: structural(features.structural),
        "  merging": lambda: model.merge(maps),
    }


def take_turns(todo: dict[str, Call], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every call in every turn: one turn of warm-up, then at least three."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in todo}
    begin, turns = time.perf_counter(), -1
    while turns < 3 or time.perf_counter() - begin < seconds:
        for name, call in todo.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if turns >= 0:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        turns += 1
    return times


def ratio(times: dict[str, list[tuple[float, float]]], below: list[str], clock: int) -> float | None:
    """Median over the turns of our time over the sum of the others'; ``None`` if one of them did not run."""
    if any(name not in times for name in below):
        return None
    turns = zip(times["NPGMF"], *(times[name] for name in below), strict=True)
    return statistics.median(ours[clock] / sum(other[clock] for other in others) for ours, *others in turns)


@torch.no_grad()
def compare(backbone: str, batch: int, bank: int, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one backbone and batch size, and the ratios."""
    many = smooth_images(max(batch, -(-bank // (SIZE // 8) ** 2)), SIZE)
    model, chosen = our_model(backbone, many, bank)
    others = rivals(backbone, chosen, many[:4])
    todo = calls(model, others, many[:batch])
    times = take_turns(todo, seconds)
    sizes = {**{name: parameters(other) for name, other in others.items()}, "NPGMF": parameters(model)}
    rows = [
        {
            "backbone": backbone,
            "batch": batch,
            "what": name,
            "wall_ms": 1e3 * statistics.median(wall for wall, _ in times[name]),
            "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in times[name]),
            "gflop_per_image": gflops(call) / batch,
            "parameters_m": sizes.get(name, ""),
            "turns": len(times[name]),
        }
        for name, call in todo.items()
    ]
    both = ["PatchCore", "ReverseDistillation"]
    by_flops = {row["what"]: row["gflop_per_image"] for row in rows}
    ratios: dict[str, Any] = {"backbone": backbone, "batch": batch, "bank": bank}
    for what, below in (("patchcore", both[:1]), ("both", both)):
        ratios[f"to_{what}_wall"], ratios[f"to_{what}_cpu"] = (ratio(times, below, clock) for clock in (0, 1))
        known = all(name in by_flops for name in below)
        ratios[f"to_{what}_flops"] = by_flops["NPGMF"] / sum(by_flops[n] for n in below) if known else None
    assert model.structural is not None
    ratios["bank_mb"] = model.structural.bank.embeddings.nbytes / 1e6
    return rows, ratios


def parameters(model: nn.Module) -> float:
    """Millions of parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def main() -> None:
    """Compare every backbone and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["wide_resnet50_2", "resnet18", "mobilenetv2_100"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--bank", type=int, default=3584, help="patches; 1 %% of 350 images of 256 pixels")
    parser.add_argument("--seconds", type=float, default=15, help="least time for each backbone and batch size")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    fix_threads(args.threads)
    print(f"{torch.get_num_threads()} thread(s)", flush=True)
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for backbone in args.backbones:
        for batch in args.batches:
            new_rows, new_ratios = compare(backbone, batch, args.bank, args.seconds)
            rows, ratios = rows + new_rows, [*ratios, new_ratios]
            print_table(new_rows)
            # Saved every time, so that a run that is cut short leaves what it measured.
            path = save("latency", rows, ratios=ratios, images="smooth noise", size=SIZE)
    print_table(ratios)
    print(path)


if __name__ == "__main__":
    main()
