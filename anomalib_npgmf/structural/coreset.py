"""Coreset of patch embeddings by greedy k-centre on randomly projected embeddings (paper, section III-B)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

from anomalib_npgmf.structural.greedy import LazyGreedy
from anomalib_npgmf.structural.search import mean_row, nearest, rows_per_chunk

_ROWS = 1024  # points projected at once
_DISTORTION = 0.9  # largest relative error of a projected squared distance; PatchCore's value


def select_coreset(
    embedding: Tensor,
    size: int,
    *,
    method: Literal["fast", "exact"] = "fast",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Select a coreset by greedy k-centre on randomly projected embeddings.

    Args:
        embedding: Patch embeddings ``[N, d]``, float32, float16 or bfloat16, on any device.
        size: Number of points to select, 1 <= size <= N.
        method: ``"exact"`` gives the indices of sequential greedy k-centre. These are the indices of anomalib's
            ``KCenterGreedy`` after ``seed_everything(seed)`` if d is above the dimension of the projection. ``"fast"``
            takes most distances from matrix products, whose rounding can swap points with distances that agree to
            five digits.
        seed: Seed of the projection and of the first centre.
        progress: Show a progress bar.

    Returns:
        Distinct indices ``[size]`` (int64, on the embedding's device) in the order of selection; the first m of them
        are the greedy coreset of size m.

    Raises:
        ValueError: If the embedding is not a matrix, is not finite, or ``size`` is out of range.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
        >>> select_coreset(points, 3, method="exact", seed=1).sort().values.tolist()
        [0, 2, 4]
    """
    if embedding.ndim != 2:
        msg = f"A coreset is selected from a matrix [N, d], but the embedding has shape {tuple(embedding.shape)}."
        raise ValueError(msg)
    if not 1 <= size <= len(embedding):
        msg = f"The coreset size must lie between 1 and the {len(embedding)} embeddings given, but it is {size}."
        raise ValueError(msg)
    return select_from_blocks([embedding], size, method=method, seed=seed, progress=progress)


def select_from_blocks(
    blocks: Sequence[Tensor],
    size: int,
    *,
    method: Literal["fast", "exact"] = "fast",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Select a coreset of embeddings given as blocks, without concatenating them.

    Args:
        blocks: Blocks of embeddings ``[n_i, d]`` of one dtype and device, N in total.
        size: Number of points to select, 1 <= size <= N.
        method: See :func:`select_coreset`.
        seed: See :func:`select_coreset`.
        progress: Show a progress bar.

    Returns:
        What :func:`select_coreset` returns for the concatenated blocks.

    Example:
        >>> blocks = torch.rand(3, 20, 8)
        >>> torch.equal(select_from_blocks(list(blocks), 9), select_coreset(blocks.flatten(0, 1), 9))
        True
    """
    total, dim = sum(len(block) for block in blocks), blocks[0].shape[1]
    matrix, start = draw_projection(total, dim, seed)
    features = torch.cat(list(blocks)) if matrix is None else _project(blocks, matrix, total)
    return LazyGreedy(features, size, exact=method == "exact").run(start, progress=progress)


def rows_of_blocks(blocks: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Take rows of embeddings given as blocks, without concatenating them.

    Args:
        blocks: Blocks of embeddings ``[n_i, d]``, N in total.
        rows: Indices in [0, N) ``[M]`` (int64), as `select_from_blocks` returns them.

    Returns:
        ``[M, d]``, float32.

    Example:
        >>> rows_of_blocks([torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]])], torch.tensor([2, 0])).tolist()
        [[2.0], [0.0]]
    """
    taken = blocks[0].new_empty(len(rows), blocks[0].shape[1], dtype=torch.float32)
    start = 0
    for block in blocks:
        inside = (rows >= start) & (rows < start + len(block))
        taken[inside] = block[rows[inside] - start].float()
        start += len(block)
    return taken


def covering_radius(embedding: Tensor, indices: Tensor) -> float:
    """Return the largest distance of any embedding to its nearest selected one, the objective of k-centre.

    Args:
        embedding: Embeddings ``[N, d]``.
        indices: Selected rows ``[M]`` (int64), M > 0.

    Returns:
        The radius, in units of the embedding.

    Example:
        >>> covering_radius(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0]))
        4.0
    """
    center = mean_row(embedding)
    points = embedding[indices].float() - center
    norms = points.square().sum(dim=1)
    chunks = embedding.split(rows_per_chunk(len(points), budget=16 << 20))
    return max(float(nearest(chunk.float() - center, points, norms)[0].max()) for chunk in chunks)


@lru_cache(maxsize=2)  # images that are thinned one by one share one projection
def draw_projection(num_points: int, dim: int, seed: int) -> tuple[Tensor | None, int]:
    """Draw a sparse random projection (Li, Hastie and Church, KDD 2006) and the first centre of the coreset.

    scikit-learn's ``SparseRandomProjection`` draws another matrix for a seed, so it is drawn here in the order of
    anomalib's class of that name: `select_coreset` then returns the indices of anomalib's ``KCenterGreedy``.

    Args:
        num_points: Number of points, N.
        dim: Their dimension, d.
        seed: Random seed. The global random states are not changed.

    Returns:
        The matrix ``[k, d]`` (float32, shared between calls: do not change it in place), or ``None`` if the dimension k
        of the Johnson-Lindenstrauss lemma is not below d; and the index of the first centre in [0, N).

    Example:
        >>> matrix, start = draw_projection(1000, 512, seed=0)
        >>> matrix.shape, 0 <= start < 1000
        (torch.Size([170, 512]), True)
        >>> draw_projection(1000, 64, seed=0)[0] is None
        True
    """
    rows = max(1, int(johnson_lindenstrauss_min_dim(num_points, eps=_DISTORTION)))
    random = np.random.RandomState(seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        matrix = torch.zeros(rows, dim) if rows < dim else None
        for row in () if matrix is None else matrix:
            count = int(torch.binomial(torch.tensor(float(dim)), torch.tensor(dim**-0.5)))
            columns = torch.from_numpy(sample_without_replacement(dim, count, random_state=random))
            row[columns] = (2 * torch.binomial(torch.ones(count), torch.tensor(0.5)) - 1) * (dim**0.25 / rows**0.5)
        return matrix, int(torch.randint(num_points, (1,)))


def _project(blocks: Sequence[Tensor], matrix: Tensor, total: int) -> Tensor:
    """Project blocks of ``[n_i, d]`` to one ``[N, k]`` of the same dtype, a chunk at a time in float32."""
    matrix = matrix.T.to(blocks[0].device)
    features = blocks[0].new_empty(total, matrix.shape[1])
    start = 0
    for chunk in (chunk for block in blocks for chunk in block.split(_ROWS)):
        features[start : start + len(chunk)] = chunk.float() @ matrix
        start += len(chunk)
    return features
