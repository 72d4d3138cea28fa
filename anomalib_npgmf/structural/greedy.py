"""Greedy k-centre selection, evaluated lazily.

Gonzalez' algorithm (Theoret. Comput. Sci. 38, 1985) adds in each step the point that is farthest from all centres so
far, and its literal form updates the distance of every point in each step. But the distance of a point to its nearest
centre never grows, so an old distance is an upper bound, and only the points with the largest bounds can be the next
centre. This module keeps a small pool of those and runs the greedy steps inside the pool as long as its farthest point
exceeds every bound outside. Then it updates the bounds of the next pool with one matrix product against the centres
added since. The sequence of centres is that of the literal algorithm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anomalib_npgmf.structural.search import mean_row, nearest

_POOL = 512  # points per pool
_RENEW_ROWS = 128  # points updated at once; sorted by last update, so that few distances are computed twice
_ROWS = 1024  # points read at once where all are read
_CHOSEN = -1.0  # bound of a chosen point: never chosen twice, even among duplicates


class LazyGreedy:
    """One selection: upper bounds of all points' distances, and the centres chosen so far.

    Args:
        features: Points ``[N, k]``.
        size: Number of centres to choose.
        exact: Recompute every distance that may decide the selection from the difference of the two points.

    Raises:
        ValueError: If a feature is not finite.
    """

    def __init__(self, features: Tensor, size: int, *, exact: bool) -> None:
        self.features = features
        self.size = size
        self.exact = exact
        self.count = 0
        self.selected = features.new_empty(size, dtype=torch.long)
        # Products are taken relative to the mean: smaller norms, smaller rounding errors.
        self.mean = mean_row(features)
        if not bool(self.mean.isfinite().all()):
            msg = "The embedding holds NaN or Inf; check the images and the backbone's weights."
            raise ValueError(msg)
        self.centres = features.new_empty(size, features.shape[1], dtype=torch.float32)
        self.norms = features.new_empty(size, dtype=torch.float32)
        self.bound = features.new_empty(len(features), dtype=torch.float32)
        self.seen = torch.zeros_like(self.bound, dtype=torch.long)  # number of centres that a point's bound includes
        pool = min(_POOL, len(features))
        self.squares = features.new_empty(pool, pool, dtype=torch.float32)  # squared distances within a pool

    def run(self, start: int, *, progress: bool) -> Tensor:
        """Choose all centres, starting with the point of index ``start``; returns their indices, [size]."""
        hidden = None if progress else True  # tqdm: None shows the bar only on a terminal
        with tqdm(total=self.size, desc="Selecting coreset", leave=False, disable=hidden) as bar:
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
        """Update the points with the largest bounds, and choose centres among them as long as they are the farthest."""
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
        """Update ``distance`` in place by the centres added since each point's last update; false if there are none."""
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
        """Run greedy steps within the pool while its farthest point exceeds all outside; return the chosen positions.

        A pool that was already up to date contains a farthest point of all, so there ``at_least`` one step is correct:
        a tie with a point outside must not stop the selection. Updates ``distance`` in place.
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
