"""Reduction of the memory bank to principal components; an addition to the paper."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_components(points: Tensor, dim: int) -> Tensor:
    """Return the first ``dim`` principal components of centred points.

    Args:
        points: Centred points ``[M, d]``, float32.
        dim: Number of directions, at most d.

    Returns:
        Orthonormal columns ``[d, dim]``, by descending variance.

    Example:
        >>> principal_components(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 1).abs()
        tensor([[1.],
                [0.]])
    """
    return torch.linalg.eigh(points.T @ points).eigenvectors[:, -dim:].flip(1).contiguous()


def reduce(points: Tensor, basis: Tensor) -> Tensor:
    """Coordinates of points in a basis, and the norm of the residual as last coordinate.

    Distances between reduced points never exceed those between the points. The last coordinate keeps what is
    orthogonal to the principal components that were kept.

    Args:
        points: ``[n, d]``.
        basis: Orthonormal columns ``[d, r]``.

    Returns:
        ``[n, r + 1]``.

    Example:
        >>> reduce(torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0], [0.0], [0.0]]))
        tensor([[3., 4.]])
    """
    along = points @ basis
    # From the residual itself: a difference of squared norms would be rounding error for a point in the span.
    return torch.cat([along, (points - along @ basis.T).square().sum(dim=1, keepdim=True).sqrt()], dim=1)
