"""One epoch of the logical branch (preset ``fast``) against one of anomalib's ReverseDistillation on a CPU.

    python studies/training.py
    python studies/training.py --backbones resnet18 --images 4 --batch 2 --seconds 1      # a quick try

Both train as they do under the engine: frozen encoder, loss, gradients, Adam. The variants take turns, one epoch each;
every figure is the median over the turns after one of warm-up, every ratio the median of the turns' ratios. An epoch is
as many equal steps as there are batches, so that one step is enough to compare. Variants of the logical branch:
channels-last weights and images, bf16 autocast, ``torch.compile`` of the branch, and features from the feature cache,
whose first epoch, the one that fills it, is the warm-up. Images are smooth noise.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from contextlib import nullcontext
from typing import Any

import torch
from _common import fix_threads, print_table, save, smooth_images
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from latency import Call, settle, take_turns
from torch import Tensor, nn

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.config import resolve
from anomalib_npgmf.torch_model import NpgmfModel

SIZE = 256
BASELINE, OURS = "ReverseDistillation", "logical branch"


def reverse_distillation(backbone: str, images: Tensor, batch: int) -> Call:
    """An epoch of anomalib's model."""
    model = ReverseDistillationModel(
        backbone=backbone,
        input_size=(SIZE, SIZE),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    ).train()
    with torch.no_grad():
        settle(model.encoder, images[:4])
    loss = ReverseDistillationLoss()
    trained = [*model.decoder.parameters(), *model.bottleneck.parameters()]
    optimiser = torch.optim.Adam(trained, lr=0.005, betas=(0.5, 0.99))

    def epoch() -> None:
        for part in images.split(batch):
            optimiser.zero_grad()
            loss(*model(part)).backward()
            optimiser.step()

    return epoch


def logical(
    model: NpgmfModel,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    batch: int,
    *,
    bf16: bool = False,
    compiled: bool = False,
    cache: FeatureCache | None = None,
) -> Call:
    """An epoch of the logical branch."""
    branch: Any = model.logical
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = torch.compile(branch.losses) if compiled else branch.losses

    def encode(part: Tensor) -> list[Tensor]:
        return model.features(part, ["logical"]).logical

    def epoch() -> None:
        for number, part in enumerate(images.split(batch)):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                keys = [f"{number}-{i}" for i in range(len(part))]
                features = encode(part) if cache is None else cache.features(keys, part, encode)
                loss = losses(features, part)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    return epoch


def variants(backbone: str, images: Tensor, batch: int, names: list[str], folder: str) -> dict[str, Call]:
    """The epochs that are timed."""
    model = NpgmfModel(resolve("fast", {"backbone": backbone, "backbone_weights": "random", "branches": "logical"}))
    assert model.encoder is not None
    with torch.no_grad():
        settle(model.encoder, images[:4])
    model.initialise(images[:8])
    model.train()
    found = {BASELINE: reverse_distillation(backbone, images, batch)} if "resnet" in backbone else {}
    optimiser = adam(model)
    made: dict[str, Any] = {
        OURS: {},
        "bf16": {"bf16": True},
        "compiled": {"compiled": True},
        "feature cache": {"cache": FeatureCache(folder, len(images))},
    }
    # One model for all: what a step costs does not depend on the weights.
    found |= {name: logical(model, optimiser, images, batch, **made[name]) for name in made if name in {OURS, *names}}
    if "channels last" in names:
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        pictures = images.contiguous(memory_format=torch.channels_last)
        found["channels last"] = logical(other, adam(other), pictures, batch)
    return found


def adam(model: NpgmfModel) -> torch.optim.Optimizer:
    """The optimiser of the logical branch."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-4, betas=(0.5, 0.999))


def compare(backbone: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one backbone."""
    images = smooth_images(args.images, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        times = take_turns(variants(backbone, images, args.batch, args.variants, folder), args.seconds)
    rows = []
    for name, turns in times.items():
        row: dict[str, Any] = {"backbone": backbone, "variant": name, "batch": args.batch, "images": args.images}
        for clock, unit in enumerate(("wall", "cpu")):
            row[f"{unit}_s"] = statistics.median(turn[clock] for turn in turns)
        for clock, unit in enumerate(("wall", "cpu")):
            for other, label in ((BASELINE, "rd"), (OURS, "ours")):
                pairs = zip(turns, times.get(other, []), strict=False)
                ratios = [own[clock] / base[clock] for own, base in pairs]
                row[f"to_{label}_{unit}"] = statistics.median(ratios) if ratios else None
        rows.append(row)
    return rows


def main() -> None:
    """Compare every backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["wide_resnet50_2", "resnet18", "mobilenetv2_100"])
    known = ["channels last", "bf16", "compiled", "feature cache"]
    parser.add_argument("--variants", nargs="*", default=["channels last", "feature cache"], choices=known)
    parser.add_argument("--images", type=int, default=4, help="in an epoch")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5, help="least time for each backbone")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    fix_threads(args.threads)
    print(f"{torch.get_num_threads()} thread(s)", flush=True)
    rows: list[dict[str, Any]] = []
    for backbone in args.backbones:
        new = compare(backbone, args)
        rows += new
        print_table(new)
        path = save("training", rows, pictures="smooth noise", size=SIZE)
    print(path)


if __name__ == "__main__":
    main()
