"""Cost of the model on a CPU: time, operations and parameters.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/latency.py models    # against PatchCore and ReverseDistillation
    python studies/latency.py models --backbones resnet18 --batches 1 --seconds 5      # a quick try
    python studies/latency.py presets                                  # every preset, table VII of the paper

``models``: preset ``fast`` and anomalib's models with the same backbone, image size and bank (3,584 patches are 1 % of
350 images of 256 pixels). They take turns, for at least ``--seconds`` per backbone and batch size; every value is the
median over the turns, every ratio the median of the turns' ratios. ``presets``: one image at a time, with the bank that
the preset keeps of 350 images; a part's figures include the pass of its own network.

Weights are random, which changes no cost. Images are smooth noise.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import timm
import torch
from _common import (
    Call,
    Row,
    gflops,
    logical_map,
    measure,
    ready,
    run_part,
    save,
    settle,
    smooth_images,
    take_turns,
    with_bank,
)
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from torch import Tensor, nn

from anomalib_npgmf.config import PRESETS
from anomalib_npgmf.torch_model import NpgmfModel

SIZE, BANK, IMAGES = 256, 3584, 350
PATCHCORE, RD, OURS = "PatchCore", "ReverseDistillation", "NPGMF"


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
        "  logical branch": lambda: ours.logical.anomaly_map(
            features.logical, ours.logical(features.logical, reconstruct=False)
        ),
        "  structural branch": lambda: ours.structural(features.structural),
        "  merging": lambda: ours.merge(maps),
    }


def models(args: argparse.Namespace) -> None:
    """Measure every backbone and batch size; the results file is written after each."""
    rows: list[Row] = []
    ratios: list[Row] = []
    for backbone in args.backbones:
        for batch in args.batches:
            images = smooth_images(max(batch, BANK // (SIZE // 8) ** 2 + 1), SIZE)
            found = built(backbone, images)
            todo = calls(found, images[:batch])
            times = take_turns(todo, args.seconds)
            medians = 1e3 * times.groupby("name", sort=False).median()
            flops = {name: gflops(call) / batch for name, call in todo.items()}
            for name in todo:
                row: Row = {"backbone": backbone, "batch": batch, "what": name}
                row |= medians.loc[name].add_suffix("_ms").to_dict()
                row |= {"gflop_per_image": flops[name], "parameters_m": millions(found[name]) if name in found else ""}
                rows.append(row | {"turns": len(times.loc[name])})
            ratio: Row = {"backbone": backbone, "batch": batch, "bank": BANK}
            for what, below in (("patchcore", [PATCHCORE]), ("both", [PATCHCORE, RD])):
                if set(below) <= set(found):
                    for clock in ("wall", "cpu"):
                        turns: pd.DataFrame = times[clock].unstack("name")
                        ratio[f"to_{what}_{clock}"] = (turns[OURS] / turns[below].sum(axis=1)).median()
            bank: Any = found[OURS].structural
            ratios.append(ratio | {"bank_mb": bank.bank.embeddings.nbytes / 1e6})
            save(args.out / "latency.json", rows, ratios=ratios, images="smooth noise", size=SIZE)


def millions(*modules: nn.Module) -> float:
    """Millions of parameters; shared ones count once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()}) / 1e6


def preset_parts(model: NpgmfModel, image: Tensor) -> dict[str, tuple[Call, tuple[Any, ...]]]:
    """Call that computes each branch or the whole model, and the modules that it needs."""
    structural: Any = model.structural
    composition: Any = model.composition
    encoder = model.structural_encoder or model.encoder
    parts: dict[str, tuple[Call, tuple[Any, ...]]] = {
        "logical branch": (
            lambda: logical_map(model, image),
            (model.encoder, model.logical),
        ),
        "structural branch": (
            lambda: structural(model.features(image, ["structural"]).structural),
            (encoder, structural),
        ),
    }
    if composition is not None:
        parts["composition read-out"] = (
            lambda: composition(model.features(image, ["composition"]).composition, model.merger.size),
            (encoder, composition),
        )
    return parts | {"whole model": (lambda: model(image), (model,))}


def presets(args: argparse.Namespace) -> None:
    """Measure every preset; the results file is written after each."""
    rows: list[Row] = []
    for preset in args.presets:
        model = with_bank(preset, IMAGES)
        image = torch.randn(1, 3, *model.config.image_size)
        assert model.structural is not None
        size = len(model.structural.bank)
        for name, (call, modules) in preset_parts(model, image).items():
            seconds = measure(call, args.repeats)
            seen = model.config.logical_image_size if name == "logical branch" else model.config.structural_image_size
            row: Row = {"preset": preset, "what": name, "image_size": max(seen), "gflop": gflops(call)}
            row |= {"parameters_m": millions(*modules), "cpu_ms": 1e3 * seconds["cpu_s"]}
            rows.append(row | {"bank_patches": size if name in ("structural branch", "whole model") else ""})
        save(args.out / "efficiency.json", rows)


@torch.no_grad()
def main() -> None:
    lists = {"backbones": ["wide_resnet50_2", "resnet18", "mobilenetv2_100"], "presets": list(PRESETS)}
    run_part(__doc__, models, presets, **lists, batches=[1, 16], seconds=15.0, repeats=5, threads=2)


if __name__ == "__main__":
    main()
