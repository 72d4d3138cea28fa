"""Greedy k-centre coreset of patch embeddings (section III-B), evaluated lazily.

Gonzalez' greedy algorithm adds, step by step, the point that is farthest from all centres chosen so far. Taken
literally each step reads every point. But a distance to the nearest centre can only shrink, so an old value is an
upper bound: only the points whose bound is among the largest can be the next centre. This module keeps a small pool of
those, runs the greedy steps inside the pool while its best point beats every bound outside, and brings the bounds of
the next pool up to date with one matrix product against the centres added since. The sequence of centres is the one of
the literal algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_npgmf.structural.projection import draw_projection
from anomalib_npgmf.structural.search import mean_row, nearest, rows_per_chunk

_POOL = 512  # points per pool
_RENEW_ROWS = 128  # points renewed at once; sorted by when they were last seen, so that few repeat a centre
_ROWS = 1024  # points read at once where all are read
_CHOSEN = -1.0  # bound of a chosen point: never chosen twice, even among duplicates


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
            after ``seed_everything(seed)`` wherever the projection shortens the embeddings. ``"fast"`` takes
            distances from matrix products alone, whose rounding can swap points that are equally far but for the
            fifth digit.
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
    return select_from_blocks([embedding], size, method=method, seed=seed, progress=progress)


def select_from_blocks(
    blocks: Sequence[Tensor],
    size: int,
    *,
    method: Literal["fast", "exact"] = "fast",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Select a coreset of embeddings that lie in blocks, without bringing them together in one tensor.

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
    return _LazyGreedy(features, size, exact=method == "exact").run(start, progress=progress)


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
    center = mean_row(embedding)
    points = embedding[indices].float() - center
    norms = points.square().sum(dim=1)
    chunks = embedding.split(rows_per_chunk(len(points), budget=16 << 20))
    return max(float(nearest(chunk.float() - center, points, norms)[0].max()) for chunk in chunks)


def _project(blocks: Sequence[Tensor], matrix: Tensor, total: int) -> Tensor:
    """Project blocks of ``[n_i, d]`` to one ``[N, k]`` of the same dtype, a chunk at a time in float32."""
    matrix = matrix.T.to(blocks[0].device)
    features = blocks[0].new_empty(total, matrix.shape[1])
    start = 0
    for chunk in (chunk for block in blocks for chunk in block.split(_ROWS)):
        features[start : start + len(chunk)] = chunk.float() @ matrix
        start += len(chunk)
    return features


class _LazyGreedy:
    """State of one selection: bounds of all points, and the centres chosen so far.

    Args:
        features: Points ``[N, k]``.
        size: Number of centres to choose.
        exact: Recompute every distance that may decide from the difference of the two points.
    """

    def __init__(self, features: Tensor, size: int, *, exact: bool) -> None:
        self.features = features
        self.size = size
        self.exact = exact
        self.count = 0
        self.selected = features.new_empty(size, dtype=torch.long)
        # Products are taken relative to the mean, where float32 loses least.
        self.mean = mean_row(features)
        if not bool(self.mean.isfinite().all()):
            msg = "The embedding holds NaN or Inf; check the images and the backbone's weights."
            raise ValueError(msg)
        self.centres = features.new_empty(size, features.shape[1], dtype=torch.float32)
        self.norms = features.new_empty(size, dtype=torch.float32)
        self.bound = features.new_empty(len(features), dtype=torch.float32)
        self.seen = torch.zeros_like(self.bound, dtype=torch.long)  # centres that a point's bound accounts for
        pool = min(_POOL, len(features))
        self.squares = features.new_empty(pool, pool, dtype=torch.float32)  # squared distances within a pool

    def run(self, start: int, *, progress: bool) -> Tensor:
        """Choose all centres, beginning with the point ``start``."""
        with tqdm(total=self.size, desc="Selecting coreset", disable=not progress) as bar:
            first = self.features[start].float()
            self._add(torch.tensor([start], device=self.features.device), first[None] - self.mean)
            for rows, bound in zip(self.features.split(_ROWS), self.bound.split(_ROWS), strict=True):
                bound.copy_(torch.linalg.vector_norm(rows.float() - first, dim=1))
            self.bound[start] = _CHOSEN
            self.seen.fill_(1)
            bar.update()
            while self.count < self.size:
                before = self.count
                self._round()
                bar.update(self.count - before)
        return self.selected

    def _add(self, indices: Tensor, centred: Tensor) -> None:
        new = slice(self.count, self.count + len(indices))
        self.selected[new] = indices
        self.centres[new] = centred
        self.norms[new] = centred.square().sum(dim=1)
        self.count += len(indices)

    def _round(self) -> None:
        """Take the points with the largest bounds, renew them, and choose centres while they stay the farthest."""
        top = self.bound.topk(min(_POOL + 1, len(self.bound)))
        pool = top.indices[:_POOL].sort().values  # ties go to the lowest index, as in the literal algorithm
        outside = float(top.values[-1]) if len(self.bound) > _POOL else _CHOSEN
        points = self.features[pool].float() - self.mean
        distance = self.bound[pool]
        renewed = self._renew(points, distance, self.seen[pool])
        chosen = self._choose(points, distance, outside, at_least=0 if renewed else 1)
        self.bound[pool] = distance
        self._add(pool[chosen], points[chosen])
        self.seen[pool] = self.count

    def _renew(self, points: Tensor, distance: Tensor, seen: Tensor) -> bool:
        """Lower ``distance`` in place by the centres added since each point was last seen; false if none were."""
        order = seen.argsort()
        renewed = False
        for rows in order.split(_RENEW_ROWS):
            first = int(seen[rows[0]])
            if first < self.count:
                renewed = True
                step, _ = nearest(points[rows], self.centres[first : self.count], self.norms[first : self.count])
                distance[rows] = torch.minimum(distance[rows], step)
        return renewed

    def _choose(self, points: Tensor, distance: Tensor, outside: float, *, at_least: int) -> Tensor:
        """Run greedy steps within the pool while its farthest point beats all outside; lower ``distance`` in place.

        A pool that was already up to date holds a farthest point of all, so ``at_least`` one step is safe there: a tie
        with the outside must not stop the selection.
        """
        norms = points.square().sum(dim=1)
        torch.mm(points, points.T, out=self.squares).mul_(-2).add_(norms).add_(norms[:, None]).clamp_(min=0)
        rounding = 1e-5 * norms.max()
        chosen: list[int] = []
        while len(chosen) < self.size - self.count:
            value, farthest = distance.max(dim=0)
            if float(value) <= outside and len(chosen) >= at_least:
                break
            chosen.append(int(farthest))
            if self.exact:
                near = (self.squares[farthest] <= distance.square() + rounding).nonzero().squeeze(1)
                step = torch.linalg.vector_norm(points[near] - points[farthest], dim=1)
                distance[near] = torch.minimum(distance[near], step)
            else:
                torch.minimum(distance, self.squares[farthest].sqrt(), out=distance)
            distance[farthest] = _CHOSEN
        return torch.tensor(chosen, dtype=torch.long, device=distance.device)
