"""Losses of a training step: computed from cached features where there are any, checked and logged."""

from typing import TYPE_CHECKING

from anomalib.data import ImageBatch
from torch import Tensor

from anomalib_npgmf.logical.loss import check_finite

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf


def losses_of(module: "Npgmf", batch: ImageBatch) -> dict[str, Tensor]:
    """Losses of the logical branch (eq. 6), from cached features of the frozen encoder where there are any.

    Args:
        module: The model.
        batch: Training images, normalised.

    Returns:
        Scalars by name; their weighted sum as ``"loss"``.

    Raises:
        RuntimeError: If a loss is NaN or infinite; in a distributed run in every process.
    """
    assert batch.image is not None
    model, cache = module.model, module.cached_features
    if cache is None or model.logical is None:
        losses: dict[str, Tensor] = model(batch.image)
    else:
        paths = [str(path) for path in batch.image_path or []]
        features = cache.features(paths, batch.image, lambda images: model.features(images, ["logical"]).logical)
        losses = model.logical.losses(features, model.resize_logical(batch.image))
    check_finite(losses, module.current_epoch)
    return losses


def log_losses(module: "Npgmf", losses: dict[str, Tensor], batch_size: int) -> None:
    """Log the means over an epoch as ``train_loss``, which the progress bar shows, and ``train_NAME_loss``.

    Args:
        module: The model, during its training step.
        losses: Scalars by name, as `losses_of` gives them.
        batch_size: Number of images that they are means of.
    """
    for name, value in losses.items():
        total = name == "loss"
        shown = "train_loss" if total else f"train_{name}_loss"
        module.log(shown, value, on_step=False, on_epoch=True, prog_bar=total, batch_size=batch_size, sync_dist=True)
