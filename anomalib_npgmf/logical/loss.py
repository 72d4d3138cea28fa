"""Losses and the anomaly map of the logical branch (paper, eqs. 3 to 7)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.distributed import sum_over_processes
from anomalib_npgmf.logical.config import LogicalConfig


def cosine_distance_map(encoder: Tensor, decoder: Tensor) -> Tensor:
    """Eq. 3: one minus the cosine between two feature maps at each position.

    Args:
        encoder: f_E^k, [B, C, H, W].
        decoder: f_D^k, [B, C, H, W].

    Returns:
        M^k in [0, 2], [B, 1, H, W]; 1 where a feature vector is zero.

    Example:
        >>> a = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> cosine_distance_map(a, torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)).item()
        1.0
    """
    # In float32 at least, also under autocast. Sums of products: `F.cosine_similarity` takes norms over the channels
    # one position at a time, six times slower on a CPU where the channels are not the innermost dimension.
    dtype = torch.promote_types(torch.promote_types(encoder.dtype, decoder.dtype), torch.float32)
    e, d = encoder.to(dtype), decoder.to(dtype)
    squares = e.square().sum(1, keepdim=True).clamp_min(1e-12) * d.square().sum(1, keepdim=True).clamp_min(1e-12)
    return 1 - (e * d).sum(1, keepdim=True) * squares.rsqrt()


def feature_loss(encoder: Sequence[Tensor], decoder: Sequence[Tensor], mode: str = "local") -> Tensor:
    """Eq. 4: the mean of eq. 3 over positions, summed over levels.

    Args:
        encoder: Maps of the encoder, [B, C_k, H_k, W_k] each.
        decoder: Maps of the decoder in the same shapes.
        mode: ``"local"`` is eq. 4; ``"flat"`` takes the cosine of whole maps, as RD4AD's code does.

    Returns:
        Scalar.
    """
    if mode == "flat":
        parts = [
            (1 - F.cosine_similarity(e.flatten(1), d.flatten(1), dim=1)).mean()
            for e, d in zip(encoder, decoder, strict=True)
        ]
    else:
        parts = [cosine_distance_map(e, d).mean() for e, d in zip(encoder, decoder, strict=True)]
    return torch.stack(parts).sum()


def logical_map(encoder: Sequence[Tensor], decoder: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Eq. 7: the distance maps of all levels, interpolated to the size of the image and summed.

    Args:
        encoder: Maps of the encoder, [B, C_k, H_k, W_k] each.
        decoder: Maps of the decoder in the same shapes.
        size: Height and width of the result.

    Returns:
        S_log, [B, 1, H, W].
    """
    maps = [
        F.interpolate(cosine_distance_map(e, d), size=size, mode="bilinear", align_corners=False)
        for e, d in zip(encoder, decoder, strict=True)
    ]
    return torch.stack(maps).sum(0)


class LogicalLoss(nn.Module):
    """Eq. 6: weighted sum of the feature loss (eq. 4), the image loss (eq. 5) and the codebook loss (eq. 2).

    Args:
        config: Its loss weights and ``cosine`` are used.
    """

    def __init__(self, config: LogicalConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        encoder: Sequence[Tensor],
        decoder: Sequence[Tensor],
        image: Tensor,
        reconstruction: Tensor,
        codebook_loss: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            encoder: Maps of the encoder's levels in the loss, [B, C_k, H_k, W_k] each.
            decoder: Maps of the decoder in the same shapes.
            image: Normalised image, [B, 3, H, W].
            reconstruction: Reconstructed image, [B, 3, H, W].
            codebook_loss: Eq. 2, summed over levels.

        Returns:
            ``feature``, ``image``, ``codebook`` and their weighted sum ``loss``.
        """
        parts = {
            "feature": feature_loss(encoder, decoder, self.config.cosine),
            "image": F.mse_loss(reconstruction, image),  # eq. 5
            "codebook": codebook_loss,
        }
        parts["loss"] = (
            self.config.feature_loss_weight * parts["feature"]
            + self.config.image_loss_weight * parts["image"]
            + self.config.codebook_loss_weight * parts["codebook"]
        )
        return parts


def check_finite(losses: dict[str, Tensor], epoch: int) -> None:
    """Raise RuntimeError if a loss is NaN or infinite, in every process of a distributed run.

    Args:
        losses: Scalars by name.
        epoch: Number of the epoch, for the message.
    """
    # One transfer from the device for all. The sum over processes is finite only if all losses are.
    total = sum_over_processes(torch.stack([value.detach() for value in losses.values()]))
    for name, value in zip(losses, total.tolist(), strict=True):
        if not math.isfinite(value):
            msg = (
                f"The {name} loss became {value} in epoch {epoch}; training stops and the last "
                "checkpoint stays. Try a smaller learning rate."
            )
            raise RuntimeError(msg)
