"""Cost of the model: time, operations, parameters and memory.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/latency.py models    # against PatchCore and ReverseDistillation
    python studies/latency.py models --backbones resnet18 --batches 1 --seconds 5      # a quick try
    python studies/latency.py presets                                  # every preset, table VII of the paper
    python studies/latency.py gpu --presets fast plus paper --threads 8 --repeats 20

``models``: preset ``fast`` and anomalib's models with the same backbone, image size and bank (3,584 patches are 1 % of
350 images of 256 pixels). They take turns, for at least ``--seconds`` per backbone and batch size; every value is the
median over the turns, every ratio the median of the turns' ratios. ``presets``: one image at a time, with the bank that
the preset keeps of 350 images; a part's figures include the pass of its own network. ``gpu``: the same parts, in
float32 (without TF32) and bfloat16, called from Python and as a CUDA graph; the median of ``--repeats`` calls, each of
which waits for the GPU.

Weights are random, which changes no cost. Images are smooth noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import timm
import torch
from _common import Call, Row, compared, ready, run_part, save, timed, with_bank
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomalib_npgmf.config import PRESETS

SIZE, BANK, IMAGES = 256, 3584, 350
PATCHCORE, RD, OURS = "PatchCore", "ReverseDistillation", "NPGMF"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


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


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random RGB images [count, 3, size, size]: noise of three scales, upsampled and added."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(count, 3, cells, cells, generator=generator) for cells in (4, 16, 64))
    return sum(nn.functional.interpolate(part, size=(size, size), mode="bicubic") for part in noise) / 3**0.5


def reverse_distillation(backbone: str) -> ReverseDistillationModel:
    """Model of anomalib with random weights."""
    return ReverseDistillationModel(
        backbone=backbone,
        input_size=(SIZE, SIZE),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )


def built(backbone: str, images: Tensor) -> dict[str, nn.Module]:
    """Our model with a bank of patches of the images, and those models of anomalib that support the backbone."""
    ours = ready("fast", backbone=backbone, backbone_weights="random")
    assert ours.encoder is not None
    assert ours.structural is not None
    settle(ours.encoder, images)
    patches = ours.structural.embed(ours.features(images).structural).flatten(0, 2)
    bank = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:BANK]]
    ours.structural.bank.fill(bank)
    info: Any = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
    by_stride = dict(zip(info.reduction(), info.module_name(), strict=True))
    patchcore = PatchcoreModel(layers=[by_stride[8], by_stride[16]], backbone=backbone, pre_trained=False).eval()
    settle(patchcore.feature_extractor, images[:4])
    patchcore.memory_bank = bank
    found: dict[str, nn.Module] = {PATCHCORE: patchcore}
    if "resnet" in backbone:
        found[RD] = reverse_distillation(backbone).eval()
        settle(found[RD], images[:4])
    return found | {OURS: ours}


def calls(found: dict[str, nn.Module], images: Tensor) -> dict[str, Call]:
    """What is timed: every model as a whole, and our parts after the pass of the encoder."""
    ours: Any = found[OURS]
    features = ours.features(images)
    maps = ours.branch_maps(images).maps
    return {
        **{name: lambda model=model: model(images) for name, model in found.items()},
        "  encoder": lambda: ours.features(images),
        "  logical branch": lambda: logical_map(ours, features.logical),
        "  structural branch": lambda: ours.structural(features.structural),
        "  merging": lambda: ours.merge(maps),
    }


def logical_map(model: Any, features: list[Tensor]) -> object:
    """Anomaly map of the logical branch."""
    return model.logical.anomaly_map(features, model.logical(features, reconstruct=False))


def models(args: argparse.Namespace) -> None:
    """Measure every backbone and batch size; the results file is written after each."""
    rows: list[Row] = []
    for backbone, batch in product(args.backbones, args.batches):
        images = smooth_images(max(batch, BANK // (SIZE // 8) ** 2 + 1), SIZE)
        found = built(backbone, images)
        todo = calls(found, images[:batch])
        below = {"patchcore": [PATCHCORE], "both": [PATCHCORE, RD]}
        for name, times in compared(todo, below, args.seconds).to_dict("index").items():
            row: Row = {"backbone": backbone, "batch": batch, "what": name}
            row |= {f"{clock}_ms": 1e3 * times[f"{clock}_s"] for clock in ("wall", "cpu")}
            row |= {"gflop_per_image": gflops(todo[name]) / batch}
            row |= {"parameters_m": millions(found[name]) if name in found else "", "turns": times["turns"]}
            if name == OURS:
                row |= {key: value for key, value in times.items() if key.startswith("to_")}
                bank: Any = found[OURS].structural
                row |= {"bank": BANK, "bank_mb": bank.bank.embeddings.nbytes / 1e6}
            rows.append(row)
        save(args.out / "latency.json", rows, images="smooth noise", size=SIZE)


def gflops(call: Call) -> float:
    """Floating-point operations of a call in 10^9; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def millions(*modules: nn.Module) -> float:
    """Millions of parameters; shared ones count once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()}) / 1e6


class Part(NamedTuple):
    """A part of the model with the pass of its network: the call, the modules that it needs, the size of its images."""

    call: Callable[[Tensor], object]
    modules: tuple[Any, ...]
    size: tuple[int, int]


def parts(model: Any) -> dict[str, Part]:
    """Each branch, and the whole model."""
    config, encoder = model.config, model.structural_encoder or model.encoder

    def composition(images: Tensor) -> object:
        return model.composition(model.features(images, ["composition"]).composition, model.merger.size)

    found = {
        "logical branch": Part(
            lambda images: logical_map(model, model.features(images, ["logical"]).logical),
            (model.encoder, model.logical),
            config.logical_image_size,
        ),
        "structural branch": Part(
            lambda images: model.structural(model.features(images, ["structural"]).structural),
            (encoder, model.structural),
            config.structural_image_size,
        ),
    }
    if model.composition is not None:
        found["composition branch"] = Part(composition, (encoder, model.composition), config.structural_image_size)
    # `forward` first checks that the model was trained, which no CUDA graph can
    whole = Part(lambda images: model.merge(model.branch_maps(images).maps), (model,), config.structural_image_size)
    return found | {"whole model": whole}


def presets(args: argparse.Namespace) -> None:
    """Measure every preset; the results file is written after each."""
    rows: list[Row] = []
    for preset in args.presets:
        model = with_bank(preset, IMAGES)
        image = torch.randn(1, 3, *model.config.image_size)
        assert model.structural is not None
        for name, part in parts(model).items():
            row: Row = {"preset": preset, "what": name, "image_size": max(part.size)}
            call = partial(part.call, image)
            row |= {"gflop": gflops(call), "parameters_m": millions(*part.modules)}
            row["cpu_ms"] = 1e3 * timed(call, args.repeats)["cpu_s"]
            with_search = name in ("structural branch", "whole model")
            rows.append(row | {"bank_patches": len(model.structural.bank) if with_search else ""})
        save(args.out / "efficiency.json", rows)


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


def gpu(args: argparse.Namespace) -> None:
    """Measure every preset on a GPU; the results file is written after each."""
    ways: dict[str, Callable[[Call], Call]] = {"": lambda call: call, "CUDA graph": captured}
    rows: list[Row] = []
    for preset in args.presets:
        model = with_bank(preset, IMAGES, "cuda")
        cases = product(PRECISIONS.items(), ways.items(), parts(model).items(), args.batches)
        for (precision, dtype), (way, prepare), (what, part), batch in cases:
            call = partial(part.call, torch.randn(batch, 3, *model.config.image_size, device="cuda"))
            row: Row = {"preset": preset, "what": what, "precision": precision, "way": way, "batch": batch}
            row |= {"image_size": max(model.config.image_size), "gflop_per_image": gflops(call) / batch}
            # weights that autocast keeps would outlive the graph that made them
            with torch.autocast("cuda", dtype, cache_enabled=False) if dtype else nullcontext():
                ready_call = prepare(call)
                torch.cuda.reset_peak_memory_stats()
                row["ms"] = 1e3 * timed(ready_call, args.repeats, warmup=2)["wall_s"]
            row |= {"peak_mb": torch.cuda.max_memory_allocated() / 1e6, "images_per_s": 1e3 * batch / row["ms"]}
            rows.append(row)
        save(args.out / "gpu.json", rows, gpu=torch.cuda.get_device_name())


@torch.no_grad()
def main() -> None:
    lists = {"backbones": ["wide_resnet50_2", "resnet18", "mobilenetv2_100"], "presets": list(PRESETS)}
    run_part(__doc__, models, presets, gpu, **lists, batches=[1, 16], seconds=15.0, repeats=5, threads=2)


if __name__ == "__main__":
    main()
