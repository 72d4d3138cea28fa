"""Nearest-neighbour distances by a matrix product, exact near zero (paper, section III-B, eqs. 9 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(queries: Tensor, points: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest point of every query with one matrix product.

    The nearest point maximises ``q·m - |m|²/2``, which needs no query norm. Its distance is then computed from the
    difference of the two vectors: the expansion ``|q|² + |m|² - 2 q·m`` loses all digits where the distance is small
    against the norms.

    Args:
        queries: Query vectors ``[n, d]``, float32.
        points: Candidate vectors ``[M, d]``, M > 0. Subtracting a common mean from queries and points reduces rounding
            errors. Half precision points are multiplied in half precision on a GPU, in float32 on a CPU.
        norms: Squared Euclidean norms of the points ``[M]``, float32.

    Returns:
        The Euclidean distances ``[n]`` (float32) and the indices ``[n]`` (int64) of the nearest points.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest(torch.tensor([[3.0, 3.0], [0.0, 1.0]]), points, points.square().sum(1))
        (tensor([1., 1.]), tensor([1, 0]))
    """
    if points.dtype == torch.float32 or points.device.type == "cpu":
        index = torch.addmm(norms, queries, points.to(torch.float32).T, beta=-0.5).argmax(dim=1)
    else:
        index = half_precision_match(queries, points, norms)
    return torch.linalg.vector_norm(queries - points[index].to(torch.float32), dim=1), index


def half_precision_match(queries: Tensor, points: Tensor, norms: Tensor) -> Tensor:
    """Return the nearest point of every query from a product in the points' half precision.

    Queries are divided by the largest norm of a point, so that no product exceeds the norm of its query: below 65504
    float16 does not overflow. Points whose scores agree within half precision may be confused.

    Args:
        queries: Query vectors ``[n, d]``, float32.
        points: Candidate vectors ``[M, d]`` in half precision.
        norms: Squared Euclidean norms of the points ``[M]``, float32.

    Returns:
        Indices ``[n]`` (int64).

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3e4, 4e4]], dtype=torch.float16)
        >>> half_precision_match(torch.tensor([[3e4, 3e4]]), points, points.float().square().sum(1))
        tensor([1])
    """
    scale = norms.max().clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
    product = (queries * scale).to(points.dtype) @ points.T
    return (product.float() - norms * (0.5 * scale)).argmax(dim=1)


def rows_per_chunk(columns: int, budget: int) -> int:
    """Return how many queries to score at once against ``columns`` points so that the scores fit ``budget`` bytes.

    Example:
        >>> rows_per_chunk(1024, budget=4 * 1024**2)
        1024
    """
    return max(1, budget // (4 * max(1, columns)))


def mean_row(points: Tensor, rows: int = 2048) -> Tensor:
    """Return the mean of ``[N, d]`` as ``[d]`` (float32), without a float32 copy of half precision points.

    Example:
        >>> mean_row(torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float16))
        tensor([2., 4.])
    """
    total = torch.zeros(points.shape[1], device=points.device)
    for chunk in points.split(rows):
        total += chunk.float().sum(dim=0)
    return total / len(points)
