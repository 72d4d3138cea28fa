"""Antialiased resizing in operators that every exporter has, for any size of image."""

import torch
from torch import Tensor, nn

from anomalib_npgmf.precision import in_single_precision


def resize_matrix(before: Tensor, after: int) -> Tensor:
    """Weights of antialiased bilinear resizing along one side.

    Output i averages the inputs j with a triangle around the same place of the image, whose half width is one pixel of
    the coarser grid: ``w_ij ~ max(0, 1 - |(2j + 1) a - (2i + 1) b| / (2 max(a, b)))`` with b pixels before and a after.
    Computed on integers, exact in float32 while the product of both sizes is below 2^23 (8,000 to 1,000 pixels), so
    that all runtimes agree.

    Args:
        before: Pixel numbers 0, 1, ..., b - 1 as float32, [b]; b may be symbolic.
        after: Number of pixels a.

    Returns:
        Matrix [a, b] whose rows sum to one; the identity where a equals b.

    Example:
        >>> resize_matrix(torch.arange(4.0), 2)
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    count = before[-1:] + 1
    target = torch.arange(after, dtype=before.dtype, device=before.device)[:, None]
    offset = ((2 * before + 1) * after - (2 * target + 1) * count).abs()
    weights = (1 - offset / (2 * count.clamp(min=after))).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


class AntialiasedResize(nn.Module):
    """Computes what torchvision's ``Resize(size, antialias=True)`` does, as two matrix products.

    anomalib takes the antialiasing out of what it exports, which changes scores; this resize stays in the graph.

    Args:
        size: Height and width of the output.

    Example:
        >>> AntialiasedResize((32, 32))(torch.ones(1, 3, 64, 48)).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    @in_single_precision
    def forward(self, image: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, *size]."""
        sides = image.shape[-2:]
        # Do not compare a symbolic side: the comparison would fix it in the exported graph.
        if all(isinstance(side, int) for side in sides) and sides == self.size:
            return image
        rows, columns = (
            resize_matrix(torch.arange(side, dtype=torch.float32, device=image.device), after).to(image.dtype)
            for side, after in zip(sides, self.size, strict=True)
        )
        # Transposed at the end, so that nothing follows a product directly: OpenVINO's CPU plugin would fuse the
        # normalisation per channel into the product, and fails at it.
        return (columns @ (rows @ image).mT).mT
