"""Default pre-processor, evaluator (the metrics of ``anomalib test``), optimiser and gradient clipping of Npgmf."""

from collections.abc import Sequence

import torch
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_npgmf.metrics import loco_metrics

GRADIENT_CLIP = 1.0  # largest gradient norm, unless the trainer sets one


def pre_processor(size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> PreProcessor:
    """Antialiased resize to ``size``, height and width, and normalisation of the channels."""
    return PreProcessor(Compose([Resize(size, antialias=True), Normalize(mean, std)]))


def evaluator() -> Evaluator:
    """Anomalib's default metrics and, on data in MVTec LOCO AD's layout, AU-sPRO and AUROC per anomaly type."""
    published = loco_metrics()
    for metric in published:
        metric.optional = True  # type: ignore[attr-defined]  # most data have another layout
    return Evaluator(
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            *published,
        ]
    )


def clip_gradients(
    module: LightningModule,
    optimizer: torch.optim.Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Clip the norm of the gradients, to `GRADIENT_CLIP` unless the trainer says otherwise; a hook of Lightning."""
    limit = GRADIENT_CLIP if gradient_clip_val is None else gradient_clip_val
    module.clip_gradients(optimizer, limit, gradient_clip_algorithm or "norm")


def optimiser(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer | None:
    """Adam with the paper's betas over all trainable parameters; ``None`` if there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, 0.999)) if parameters else None
