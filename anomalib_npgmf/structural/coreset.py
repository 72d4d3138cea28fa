# Copyright (C) 2026 The anomalib-npgmf authors
# SPDX-License-Identifier: Apache-2.0

"""Greedy k-centre coreset of patch embeddings (section III-B), evaluated lazily.

Gonzalez' greedy algorithm adds, step by step, the point that is farthest from all centres chosen so far. Taken
literally each step reads every point. But a distance to the nearest centre can only shrink, so an old value is an
upper bound: only the points whose bound is among the largest can be the next centre. This module keeps a small pool of
those, runs the greedy steps inside the pool while its best point beats every bound outside, and brings the bounds of
the next pool up to date with one matrix product against the centres added since. The sequence of centres is the one of
the literal algorithm.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_npgmf.structural.distance import nearest, rows_per_chunk
from anomalib_npgmf.structural.projection import draw_projection

_POOL = 1024  # points per pool: their projections fit a CPU's second-level cache
_SLACK = {"exact": 0.0, "fast": 0.01}  # relative gap to the true farthest point that a step may accept


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
        method: ``"exact"`` gives the indices of sequential greedy k-centre, those of anomalib's ``KCenterGreedy``
            after ``seed_everything(seed)`` wherever the projection shortens the embeddings. ``"fast"`` accepts in
            each step a point whose distance is within 1 % of the farthest.
        seed: Seed of the projection and of the first centre.
        progress: Show a progress bar.

    Returns:
        Distinct indices ``[size]`` (int64, on the embedding's device) in the order of selection, so that every
        leading part is itself a greedy coreset.

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
    matrix, start = draw_projection(len(embedding), embedding.shape[1], seed)
    features = embedding if matrix is None else _project(embedding, matrix)
    return _LazyGreedy(features, size, _SLACK[method]).run(start, progress=progress)


def covering_radius(embedding: Tensor, indices: Tensor) -> float:
    """Return the largest distance of any embedding to its nearest selected one: what greedy k-centre minimises.

    Args:
        embedding: Embeddings ``[N, d]``.
        indices: Selected rows ``[M]`` (int64), M > 0.

    Returns:
        The radius, in units of the embedding.

    Example:
        >>> covering_radius(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0]))
        4.0
    """
    center = embedding.mean(dim=0, dtype=torch.float32)
    points = embedding[indices].float() - center
    norms = points.square().sum(dim=1)
    chunks = embedding.split(rows_per_chunk(len(points), budget=16 << 20))
    return max(float(nearest(chunk.float() - center, points, norms)[0].max()) for chunk in chunks)


def _project(embedding: Tensor, matrix: Tensor) -> Tensor:
    """Project ``[N, d]`` to ``[N, k]`` of the same dtype, a chunk at a time in float32."""
    matrix = matrix.T.to(embedding.device)
    features = embedding.new_empty(len(embedding), matrix.shape[1])
    rows = 8192
    for source, target in zip(embedding.split(rows), features.split(rows), strict=True):
        target.copy_(source.float() @ matrix)
    return features


class _LazyGreedy:
    """State of one selection: bounds of all points, and the centres chosen so far.

    Args:
        features: Points ``[N, k]``.
        size: Number of centres to choose.
        slack: Relative gap to the farthest point that a step may accept.
    """

    def __init__(self, features: Tensor, size: int, slack: float) -> None:
        self.features = features
        self.size = size
        self.slack = slack
        self.count = 0
        self.selected = features.new_empty(size, dtype=torch.long)
        # Distances are taken at the mean, where float32 matrix products lose least.
        self.mean = features.mean(dim=0, dtype=torch.float32)
        if not bool(self.mean.isfinite().all()):
            msg = "The embedding holds NaN or Inf; check the images and the backbone's weights."
            raise ValueError(msg)
        self.centres = features.new_empty(size, features.shape[1], dtype=torch.float32)
        self.norms = features.new_empty(size, dtype=torch.float32)
        self.bound = features.new_empty(len(features), dtype=torch.float32)
        self.seen = torch.zeros_like(self.bound, dtype=torch.long)  # centres that a point's bound accounts for

    def run(self, start: int, *, progress: bool) -> Tensor:
        """Choose all centres, beginning with the point ``start``."""
        with tqdm(total=self.size, desc="Selecting coreset", disable=not progress) as bar:
            self._add(torch.tensor(start, device=self.features.device), self.features[start].float())
            for rows, bound in zip(self.features.split(8192), self.bound.split(8192), strict=True):
                bound.copy_(torch.linalg.vector_norm(rows.float() - self.features[start].float(), dim=1))
            self.bound[start] = -1.0  # never chosen twice, even among duplicates
            self.seen.fill_(1)
            while self.count < self.size:
                before = self.count
                self._round()
                bar.update(self.count - before)
        return self.selected

    def _add(self, index: Tensor, point: Tensor) -> None:
        centre = point - self.mean
        self.selected[self.count] = index
        self.centres[self.count] = centre
        self.norms[self.count] = centre.dot(centre)
        self.count += 1

    def _round(self) -> None:
        """Take the points with the largest bounds, renew them, and choose centres while they stay the farthest."""
        top = self.bound.topk(min(_POOL + 1, len(self.bound)))
        pool = top.indices[:_POOL].sort().values  # ties go to the lowest index, as in the literal algorithm
        outside = float(top.values[-1]) if len(self.bound) > _POOL else -1.0
        points = self.features[pool].float()
        distance = self.bound[pool]
        renewed = self._renew(points, distance, self.seen[pool])
        difference, step = torch.empty_like(points), torch.empty_like(distance)
        while self.count < self.size:
            farthest = distance.argmax()
            value = float(distance[farthest])
            # A pool that was already up to date holds the farthest point; ties with the outside must not stop it.
            if value <= outside * (1 - self.slack) and renewed:
                break
            renewed = True
            self._add(pool[farthest], points[farthest])
            torch.sub(points, points[farthest], out=difference)
            torch.linalg.vector_norm(difference, dim=1, out=step)
            torch.minimum(distance, step, out=distance)
            distance[farthest] = -1.0
        self.bound[pool] = distance
        self.seen[pool] = self.count

    def _renew(self, points: Tensor, distance: Tensor, seen: Tensor) -> bool:
        """Lower ``distance`` in place by the centres added since each point was last seen."""
        order = seen.argsort()
        renewed = False
        for rows in order.split(128):
            first = int(seen[rows[0]])
            if first == self.count:
                continue
            renewed = True
            centres = self.centres[first : self.count]
            step, _ = nearest(points[rows] - self.mean, centres, self.norms[first : self.count])
            distance[rows] = torch.minimum(distance[rows], step)
        return renewed
