"""Convolution blocks that the embedding, the codebooks and the decoder share."""

from math import gcd

import torch.nn.functional as F
from torch import Tensor, nn


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch has a single value per channel.

    The last batch of an epoch may be one image, whose one-class embedding may be 1 x 1; torch refuses that.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Group normalisation (up to 32 groups, each of four channels or more) or batch normalisation.

    Args:
        kind: ``"gn"`` or ``"bn"``.
        channels: Number of channels.

    Example:
        >>> make_norm("gn", 48).num_groups
        8
    """
    if kind == "bn":
        return _BatchNorm(channels)
    # The one-class embedding may be 1 x 1: a group of one channel would be a single value, normalised to zero.
    groups = gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def _upsampling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)


class Bottleneck(nn.Module):
    """Residual bottleneck of the decoder; with ``up`` it doubles the resolution (RD4AD's decoder block).

    1x1 convolution, 3x3 convolution or 2x2 transposed convolution of stride 2, 1x1 convolution, each normalised. The
    shortcut is the identity or a normalised 2x2 transposed convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        norm: See `make_norm`.
        up: Whether to double the resolution. Without it ``in_channels`` must equal ``out_channels``.
        rectify: Whether the block ends in a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str, *, up: bool = False, rectify: bool = True):
        super().__init__()
        width = max(out_channels // 4, 16)
        middle = _upsampling(width, width) if up else nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            make_norm(norm, width),
            nn.ReLU(inplace=True),
            middle,
            make_norm(norm, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, 1, bias=False),
            make_norm(norm, out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if up:
            self.shortcut = nn.Sequential(_upsampling(in_channels, out_channels), make_norm(norm, out_channels))
        self.activation = nn.ReLU(inplace=True) if rectify else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H, W], or [B, out, 2H, 2W] with ``up``."""
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out
