"""Latency of the whole model (preset ``fast``) against anomalib's PatchCore and ReverseDistillation on a CPU.

    MALLOC_MMAP_THRESHOLD_=1000000 python studies/latency.py
    python studies/latency.py --backbones resnet18 --batches 1 --seconds 5      # a quick try

Same backbone (random weights whose batch normalisation has seen the images), image size and bank (``--bank``: 3,584
patches are 1 % of 350 images of 256 pixels). The models take turns, for at least ``--seconds`` per backbone and batch
size; every figure is the median over the turns after one turn of warm-up, and every ratio the median of the turns'
ratios. Images are smooth noise, and the bank holds patches of such images.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import timm
import torch
from _common import Call, Row, gflops, options, ready, settle, smooth_images, table, take_turns
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from torch import Tensor, nn

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.torch_model import NpgmfModel

SIZE = 256
PATCHCORE, RD, OURS = "PatchCore", "ReverseDistillation", "NPGMF"


def our_model(backbone: str, images: Tensor, size: int) -> tuple[NpgmfModel, Tensor]:
    """Preset ``fast`` with a bank of ``size`` patches, calibrated; and the bank before it is reduced."""
    model = ready("fast", backbone=backbone, backbone_weights="random")
    assert model.encoder is not None
    assert model.structural is not None
    settle(model.encoder, images)
    patches = model.structural.embed(model.features(images).structural).flatten(0, 2)
    if len(patches) < size:
        msg = f"{len(images)} images have {len(patches)} patches, fewer than a bank of {size}."
        raise ValueError(msg)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:size]]
    model.structural.bank.fill(chosen)
    return model, chosen


def reverse_distillation(backbone: str, size: int) -> ReverseDistillationModel:
    """Model of anomalib with random weights."""
    return ReverseDistillationModel(
        backbone=backbone,
        input_size=(size, size),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )


def rivals(backbone: str, bank: Tensor, images: Tensor) -> dict[str, nn.Module]:
    """Models of anomalib, as far as they allow the backbone."""
    info: Any = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
    by_stride = dict(zip(info.reduction(), info.module_name(), strict=True))
    patchcore = PatchcoreModel(layers=[by_stride[8], by_stride[16]], backbone=backbone, pre_trained=False).eval()
    settle(patchcore.feature_extractor, images)
    patchcore.memory_bank = bank
    found: dict[str, nn.Module] = {PATCHCORE: patchcore}
    if "resnet" in backbone:
        found[RD] = reverse_distillation(backbone, SIZE).eval()
        settle(found[RD], images)
    return found


def calls(model: NpgmfModel, others: dict[str, nn.Module], images: Tensor) -> dict[str, Call]:
    """What is timed: every model as a whole, and our parts after the pass of the encoder."""
    logical: Any = model.logical
    structural: Any = model.structural
    features = model.features(images)
    maps = model.branch_maps(images).maps
    return {
        **{name: lambda m=other: m(images) for name, other in others.items()},
        OURS: lambda: model(images),
        "  encoder": lambda: model.features(images),
        "  logical branch": lambda: logical.anomaly_map(features.logical, logical(features.logical, reconstruct=False)),
        "  structural branch": lambda: structural(features.structural),
        "  merging": lambda: model.merge(maps),
    }


@torch.no_grad()
def compare(backbone: str, batch: int, bank: int, seconds: float) -> tuple[list[Row], Row]:
    """Rows of one backbone and batch size, and the ratios."""
    many = smooth_images(max(batch, -(-bank // (SIZE // 8) ** 2)), SIZE)
    model, chosen = our_model(backbone, many, bank)
    others = rivals(backbone, chosen, many[:4])
    todo = calls(model, others, many[:batch])
    times = take_turns(todo, seconds)
    frame = 1e3 * times.groupby("name", sort=False).median().add_suffix("_ms")
    frame["gflop_per_image"] = [gflops(call) / batch for call in todo.values()]
    sizes = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in (others | {OURS: model}).items()}
    frame["parameters_m"] = [sizes.get(name, "") for name in todo]
    frame["turns"] = times.groupby("name").size()
    frame = frame.rename_axis("what").reset_index()
    frame.insert(0, "backbone", backbone)
    frame.insert(1, "batch", batch)
    ratios: Row = {"backbone": backbone, "batch": batch, "bank": bank}
    flops = frame.set_index("what").gflop_per_image
    for what, below in (("patchcore", [PATCHCORE]), ("both", [PATCHCORE, RD])):
        known = all(name in others for name in below)
        for clock in ("wall", "cpu"):
            turns: pd.DataFrame = times[clock].unstack("name")
            ratios[f"to_{what}_{clock}"] = (turns[OURS] / turns[below].sum(axis=1)).median() if known else None
        ratios[f"to_{what}_flops"] = flops[OURS] / flops[below].sum() if known else None
    assert model.structural is not None
    ratios["bank_mb"] = model.structural.bank.embeddings.nbytes / 1e6
    return frame.to_dict("records"), ratios


def main() -> None:
    backbones = ["wide_resnet50_2", "resnet18", "mobilenetv2_100"]
    args = options(__doc__, backbones=backbones, batches=[1, 16], bank=3584, seconds=15.0, threads=2)
    rows: list[Row] = []
    ratios: list[Row] = []
    for backbone in args.backbones:
        for batch in args.batches:
            new_rows, new_ratios = compare(backbone, batch, args.bank, args.seconds)
            rows, ratios = rows + new_rows, [*ratios, new_ratios]
            print(table(new_rows), flush=True)
            # Saved every time, so that a run that is cut short leaves what it measured.
            write(args.out / "latency.json", rows, ratios=ratios, images="smooth noise", size=SIZE)
    print(table(ratios))


if __name__ == "__main__":
    main()
