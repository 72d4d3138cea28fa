"""Whitening of patch embeddings, level by level; an addition to the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 1.0  # times the mean variance: added to every eigenvalue of the covariance before whitening
_ROWS = 4096


def whitening(blocks: Sequence[Tensor], channels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean of patch embeddings, and a linear map that whitens them: distances become Mahalanobis distances.

    In the features of a level a few directions hold most of the variance, and normal images vary along them. Whitening
    lets the others count as well. Each level is whitened by itself with the regularised covariance ``C + v I``, v being
    the mean variance of its channels, and then scaled so that its total variance is one: all levels have the same
    weight.

    Args:
        blocks: Embeddings ``[n_i, d]``, which concatenate the levels.
        channels: Channels of each level; they add up to d.

    Returns:
        Mean ``[d]`` and matrix ``[d, d]``, float32: ``(embedding - mean) @ matrix`` is whitened.

    Example:
        >>> points = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 0.1])
        >>> mean, matrix = whitening([points], [2])
        >>> variances = ((points - mean) @ matrix).var(dim=0)
        >>> round(variances.sum().item(), 3), bool(variances[0] / variances[1] < 10000 / 2)
        (1.0, True)
    """
    count = sum(len(block) for block in blocks)
    mean = torch.stack([block.float().sum(dim=0).double() for block in blocks]).sum(dim=0) / count
    dim = len(mean)
    squares = mean.new_zeros(dim, dim)
    for chunk in (chunk for block in blocks for chunk in block.split(_ROWS)):
        centred = chunk.float() - mean.float()
        squares += (centred.T @ centred).double()
    matrix, start = torch.zeros_like(squares), 0
    for size in channels:
        own = slice(start, start + size)
        variances, directions = torch.linalg.eigh(squares[own, own] / max(count - 1, 1))
        regularised = variances.clamp_min(0) + RIDGE * variances.mean().clamp_min(torch.finfo(torch.float32).tiny)
        total = (variances.clamp_min(0) / regularised).sum().clamp_min(torch.finfo(torch.float32).eps)
        matrix[own, own] = (directions * regularised.rsqrt()) @ directions.T * total.rsqrt()
        start += size
    return mean.float(), matrix.float()
