"""Strided convolutions over maps of a few positions, as matrix products on the CPU.

Near the one-class embedding a map has 4 to 256 positions and a kernel has millions of weights. oneDNN then brings all
weights into another layout at every call, and transposed convolutions fall back to a path without it; a plain product
reads the weights once. Weights, names and results (up to rounding) are those of the torch layers. A GPU, and a graph
that is captured for export or compilation, keep torch's convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POSITIONS = 256  # of the input map, up to which the product was measured to be faster


def _as_product(x: Tensor) -> bool:
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= _POSITIONS and not captured


class HalvingConv2d(nn.Conv2d):
    """3x3 convolution of stride 2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        bias: Whether to add a bias.

    Example:
        >>> HalvingConv2d(2, 4)(torch.zeros(1, 2, 8, 7)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C_out, ceil(H/2), ceil(W/2)]."""
        if not _as_product(x):
            return super().forward(x)
        out = self.weight.flatten(1) @ F.unfold(x, 3, stride=2, padding=1)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.unflatten(2, ((x.shape[-2] + 1) // 2, (x.shape[-1] + 1) // 2))


class DoublingConv2d(nn.ConvTranspose2d):
    """2x2 transposed convolution of stride 2 without bias: every position becomes four.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Example:
        >>> DoublingConv2d(4, 2)(torch.zeros(1, 4, 3, 2)).shape
        torch.Size([1, 2, 6, 4])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, bias=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, C, H, W] to [B, C_out, 2H, 2W]."""
        if not _as_product(x) or output_size is not None:
            return super().forward(x, output_size)
        # The kernels of neighbouring positions do not overlap.
        return torch.einsum("bihw,iorc->bohrwc", x, self.weight).flatten(4, 5).flatten(2, 3)
