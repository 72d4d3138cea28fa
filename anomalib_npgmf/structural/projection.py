"""Sparse random projection that makes the coreset's distances cheap (Li, Hastie and Church, KDD 2006).

The paper selects its coreset on randomly projected features after Johnson and Lindenstrauss (section III-B). The random
numbers are drawn in the order in which anomalib's ``SparseRandomProjection`` draws them, so that the same seed gives
the same projection and the same first centre as ``anomalib.models.components.KCenterGreedy``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

# Distortion of the projected distances. PatchCore's value, kept by the paper's authors in their other code.
EPS = 0.9


def projected_dim(num_points: int, eps: float = EPS) -> int:
    """Return the safe dimension of a projection by the lemma of Johnson and Lindenstrauss.

    Args:
        num_points: Number of points whose distances are to be kept.
        eps: Largest relative distortion of a squared distance, in (0, 1).

    Example:
        >>> projected_dim(60_000)
        271
    """
    return max(1, int(4 * math.log(num_points) / (eps**2 / 2 - eps**3 / 3)))


@lru_cache(maxsize=2)  # images that are thinned one by one share one projection
def draw_projection(num_points: int, dim: int, seed: int) -> tuple[Tensor | None, int]:
    """Draw the projection of ``num_points`` vectors and the first centre of their coreset.

    The global random states are left as they were. Repeated calls share one matrix: do not change it in place.

    Args:
        num_points: Number of vectors, N.
        dim: Their dimension, d.
        seed: Seed of the matrix and of the first centre.

    Returns:
        The matrix ``[k, d]`` (float32), or ``None`` where projecting would not make the vectors shorter, and the index
        of the first centre in [0, N).

    Example:
        >>> matrix, start = draw_projection(1000, 512, seed=0)
        >>> matrix.shape, 0 <= start < 1000
        (torch.Size([170, 512]), True)
        >>> draw_projection(1000, 64, seed=0)[0] is None
        True
    """
    components = projected_dim(num_points)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        matrix = _sparse_matrix(components, dim, seed) if components < dim else None
        return matrix, int(torch.randint(high=num_points, size=(1,)))


def _sparse_matrix(components: int, dim: int, seed: int) -> Tensor:
    rng = np.random.RandomState(seed)  # the legacy generator, because scikit-learn's sampler takes no other
    density = 1 / math.sqrt(dim)
    entries_per_row = torch.distributions.Binomial(total_count=dim, probs=torch.tensor(density))
    sign = torch.distributions.Binomial(total_count=1, probs=torch.tensor(0.5))
    matrix = torch.zeros(components, dim)
    for row in matrix:
        count = int(entries_per_row.sample())
        columns = torch.from_numpy(sample_without_replacement(dim, count, random_state=rng)).long()
        row[columns] = sign.sample(columns.shape) * 2 - 1
    return matrix * (math.sqrt(1 / density) / math.sqrt(components))
