"""One epoch of the logical branch (preset ``fast``) against one of anomalib's ReverseDistillation on a CPU.

    python studies/training.py
    python studies/training.py --backbones resnet18 --images 4 --batch 2 --seconds 1      # a quick try

Both train as they do under the engine: frozen encoder, loss, gradients, Adam. The variants take turns, one epoch each,
for at least ``--seconds`` per backbone; every value is the median over the turns after one of warm-up, every ratio the
median of the turns' ratios. An epoch is as many equal steps as there are batches, so that one step is enough to
compare. Variants of the logical branch (``--variants``): the branch "compiled" by ``torch.compile``, and features from
the "feature cache", whose first epoch, the one that fills it, is the warm-up. Images are smooth noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from _common import Call, Row, compared, options, ready, save
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from latency import SIZE, reverse_distillation, settle, smooth_images
from torch import Tensor, nn

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.host.defaults import GRADIENT_CLIP, optimiser

BASELINE, OURS = "ReverseDistillation", "logical branch"
Loss = Callable[[int, Tensor], Tensor]  # of the number of a batch and its images


def epoch(adam: torch.optim.Optimizer, images: Tensor, batch: int, loss: Loss, clip: float | None = None) -> Call:
    """An epoch of training steps; as the engine makes them."""

    def call() -> None:
        for number, part in enumerate(images.split(batch)):
            adam.zero_grad()
            loss(number, part).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], clip)
            adam.step()

    return call


def epochs(backbone: str, images: Tensor, batch: int, names: list[str], cache: FeatureCache) -> dict[str, Call]:
    """Calls that train one epoch each, by variant."""
    found: dict[str, Call] = {}
    if "resnet" in backbone:
        theirs, rd_loss = reverse_distillation(backbone).train(), ReverseDistillationLoss()
        with torch.no_grad():
            settle(theirs.encoder, images[:4])
        adam = torch.optim.Adam([*theirs.decoder.parameters(), *theirs.bottleneck.parameters()], 0.005, (0.5, 0.99))
        found[BASELINE] = epoch(adam, images, batch, lambda _, part: rd_loss(*theirs(part)))
    model = ready("fast", backbone=backbone, backbone_weights="random", branches="logical")
    assert model.encoder is not None
    assert model.logical is not None
    with torch.no_grad():
        settle(model.encoder, images[:4])
    model.initialise(images[:8])
    model.train()
    for name in (OURS, *names):
        losses = torch.compile(model.logical.losses) if name == "compiled" else model.logical.losses

        def encode(images: Tensor) -> list[Tensor]:
            return model.features(images, ["logical"]).logical

        # all train one model: what a step costs does not depend on the weights
        def loss(number: int, part: Tensor, losses: Any = losses, name: str = name) -> Tensor:
            keys = [f"{number}-{i}" for i in range(len(part))]
            features = cache.features(keys, part, encode) if name == "feature cache" else encode(part)
            return losses(features, part)["loss"]

        adam = optimiser(model, model.config.learning_rate)
        assert adam is not None
        found[name] = epoch(adam, images, batch, loss, GRADIENT_CLIP)
    return found


def main() -> None:
    lists = {
        "backbones": ["wide_resnet50_2", "resnet18", "mobilenetv2_100"],
        "variants": ["feature cache"],
    }
    args = options(__doc__, **lists, images=4, batch=4, seconds=5.0, threads=2)
    rows: list[Row] = []
    images = smooth_images(args.images, SIZE)
    for backbone in args.backbones:
        with tempfile.TemporaryDirectory() as folder:
            calls = epochs(backbone, images, args.batch, args.variants, FeatureCache(folder, len(images)))
            found = compared(calls, {"rd": [BASELINE], "ours": [OURS]}, args.seconds).drop(columns="turns")
        setting = {"backbone": backbone, "batch": args.batch, "images": args.images}
        rows += [setting | row for row in found.rename_axis("variant").reset_index().to_dict("records")]
        save(args.out / "training.json", rows, pictures="smooth noise", size=SIZE)


if __name__ == "__main__":
    main()
