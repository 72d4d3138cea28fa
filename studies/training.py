"""One epoch of the logical branch (preset ``fast``) against one of anomalib's ReverseDistillation on a CPU.

    python studies/training.py
    python studies/training.py --backbones resnet18 --images 4 --batch 2 --seconds 1      # a quick try

Both train as they do under the engine: frozen encoder, loss, gradients, Adam. The variants take turns, one epoch each,
for at least ``--seconds`` per backbone; every value is the median over the turns after one of warm-up, every ratio the
median of the turns' ratios. An epoch is as many equal steps as there are batches, so that one step is enough to
compare. Variants of the logical branch (``--variants``): "channels last" weights and images, the branch "compiled" by
``torch.compile``, and features from the "feature cache", whose first epoch, the one that fills it, is the warm-up.
Images are smooth noise.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from typing import Any

import torch
from _common import Call, Row, options, ready, save, settle, smooth_images, take_turns
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from latency import SIZE, reverse_distillation
from torch import Tensor, nn

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.torch_model import NpgmfModel

BASELINE, OURS = "ReverseDistillation", "logical branch"
VARIANTS = ("compiled", "feature cache", "channels last")


def baseline(backbone: str, images: Tensor, batch: int) -> Call:
    """An epoch of anomalib's model."""
    model = reverse_distillation(backbone).train()
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


def logical(model: NpgmfModel, images: Tensor, batch: int, name: str, cache: FeatureCache) -> Call:
    """An epoch of a variant of the logical branch."""
    branch: Any = model.logical
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=2e-4, betas=(0.5, 0.999))
    losses = torch.compile(branch.losses) if name == "compiled" else branch.losses

    def encode(part: Tensor) -> list[Tensor]:
        return model.features(part, ["logical"]).logical

    def epoch() -> None:
        for number, part in enumerate(images.split(batch)):
            optimiser.zero_grad()
            keys = [f"{number}-{i}" for i in range(len(part))]
            features = cache.features(keys, part, encode) if name == "feature cache" else encode(part)
            losses(features, part)["loss"].backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    return epoch


def epochs(backbone: str, images: Tensor, batch: int, names: list[str], folder: str) -> dict[str, Call]:
    """Calls that train one epoch each, by variant."""
    model = ready("fast", backbone=backbone, backbone_weights="random", branches="logical")
    assert model.encoder is not None
    with torch.no_grad():
        settle(model.encoder, images[:4])
    model.initialise(images[:8])
    model.train()
    found = {BASELINE: baseline(backbone, images, batch)} if "resnet" in backbone else {}
    cache = FeatureCache(folder, len(images))
    for name in (OURS, *(name for name in VARIANTS if name in names)):
        # One model for the others: what a step costs does not depend on the weights.
        channels_last = {"memory_format": torch.channels_last} if name == "channels last" else {}
        own = copy.deepcopy(model).to(**channels_last) if channels_last else model
        found[name] = logical(own, images.contiguous(**channels_last), batch, name, cache)
    return found


def compare(backbone: str, args: argparse.Namespace) -> list[Row]:
    """Rows of one backbone."""
    images = smooth_images(args.images, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        times = take_turns(epochs(backbone, images, args.batch, args.variants, folder), args.seconds)
    turns = {clock: times[clock].unstack("name") for clock in ("wall", "cpu")}
    rows = []
    for name in times.index.unique("name"):
        row: Row = {"backbone": backbone, "variant": name, "batch": args.batch, "images": args.images}
        row |= {f"{clock}_s": frame[name].median() for clock, frame in turns.items()}
        for clock, frame in turns.items():
            for other, label in ((BASELINE, "rd"), (OURS, "ours")):
                row[f"to_{label}_{clock}"] = (frame[name] / frame[other]).median() if other in frame else None
        rows.append(row)
    return rows


def main() -> None:
    lists = {
        "backbones": ["wide_resnet50_2", "resnet18", "mobilenetv2_100"],
        "variants": ["channels last", "feature cache"],
    }
    args = options(__doc__, **lists, images=4, batch=4, seconds=5.0, threads=2)
    rows: list[Row] = []
    for backbone in args.backbones:
        rows += compare(backbone, args)
        save(args.out / "training.json", rows, pictures="smooth noise", size=SIZE)


if __name__ == "__main__":
    main()
