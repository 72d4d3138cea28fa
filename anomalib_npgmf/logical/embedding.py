"""One-class embedding: the bottleneck of the logical branch (paper, section III-A1)."""

from torch import Tensor, nn

from anomalib_npgmf.logical.blocks import make_norm


class OneClassEmbedding(nn.Sequential):
    """Two 3x3 convolutions of stride 2 that compress the deepest feature map to a sixteenth of its area.

    Args:
        in_channels: Channels of the deepest feature map.
        out_channels: Channels of the embedding.
        norm: See `make_norm`.
        middle_channels: Channels between the two convolutions; ``None`` for those of the input.
        rectified: Whether the second convolution is normalised and rectified as the first is.

    Example:
        >>> import torch
        >>> OneClassEmbedding(64, 32, "gn")(torch.zeros(1, 64, 8, 8)).shape
        torch.Size([1, 32, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        middle_channels: int | None = None,
        *,
        rectified: bool = True,
    ) -> None:
        middle = middle_channels or in_channels
        last = (make_norm(norm, out_channels), nn.ReLU(inplace=True)) if rectified else ()
        super().__init__(
            nn.Conv2d(in_channels, middle, 3, stride=2, padding=1, bias=False),
            make_norm(norm, middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, out_channels, 3, stride=2, padding=1, bias=not rectified),
            *last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_o, H/4, W/4]."""
        return super().forward(features)
