"""The exact curve of mean sPRO over false positive rate, and the area under it (AU-sPRO).

The area needs no sweep over thresholds. A defect with saturation area ``s`` has the sPRO ``min(TP / s, 1)``, so only
its ``s`` highest pixels can raise its sPRO, each by ``1 / s``. A pixel of score ``p`` is a true positive (TP) at
thresholds below ``p``, where the false positive rate is at least the fraction of negative pixels above ``p``. The sum
of the pixels' contributions to the integral is the area under the curve through *every* distinct score. It depends on
the negatives only through their numbers above and at each ``p``. These counts add up over images, so a category is
never in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_npgmf.metrics.scores import FloatArray

CountArray = npt.NDArray[np.unsignedinteger[Any]]

# Thresholds per call of `searchsorted`, whose index arrays then take 8 MB.
_BLOCK = 1 << 20


class Hits(NamedTuple):
    """Defect pixels that raise the mean sPRO, by score.

    Attributes:
        scores: ``(K,)`` distinct scores, ascending.
        gains: ``(K,)`` increase of the mean sPRO when the threshold falls below that score.
    """

    scores: FloatArray
    gains: npt.NDArray[np.float64]


class SproCurve(NamedTuple):
    """The exact curve of mean sPRO over false positive rate.

    It runs from (0, 0) to (1, 1). At each hit it rises by ``gain``, linearly as the false positive rate goes from
    ``above`` to ``at_least`` over ``negatives``; in between it is flat.

    Attributes:
        gains: ``(K,)`` increase of the mean sPRO per hit, ascending in score.
        above: ``(K,)`` negative pixels with a higher score than the hit.
        at_least: ``(K,)`` negative pixels with at least the score of the hit.
        negatives: Number of negative pixels of the images that are compared.
    """

    gains: npt.NDArray[np.float64]
    above: CountArray
    at_least: CountArray
    negatives: int

    def area(self, limit: float) -> float:
        """Area under the curve for false positive rates from 0 to ``limit``, divided by ``limit``.

        A hit's gain rises linearly as the false positive rate x goes from ``a`` (above) to ``b`` (at least), so it adds
        ``gain * ∫ clip((x - a) / (b - a), 0, 1) dx`` over [0, limit].

        Args:
            limit: Largest false positive rate, in (0, 1].

        Returns:
            AU-sPRO in [0, 1].

        Raises:
            ValueError: If the limit is outside (0, 1].
        """
        check_limit(limit)
        total = 0.0
        for block in _blocks(len(self.gains)):
            a = self.above[block] / self.negatives
            b = self.at_least[block] / self.negatives
            whole = np.maximum(limit - (a + b) / 2, 0)
            # equal scores on both sides of the limit: linear interpolation at the limit
            cut = np.divide((limit - a) ** 2, 2 * (b - a), out=np.zeros_like(a), where=b > a)
            integral = np.where(b <= limit, whole, np.where(a < limit, cut, 0))
            total += float(self.gains[block] @ integral)
        return total / limit

    def points(self, count: int = 1000) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Pick exact points of the curve, evenly along it, for plotting.

        Args:
            count: Maximum number of hits to show; each is two points.

        Returns:
            False positive rates and mean sPRO values, both ascending and of the same length.
        """
        spro = np.cumsum(self.gains[::-1])
        travelled = spro + self.at_least[::-1] / self.negatives
        picked = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], count), side="right") - 1)
        picked = picked[picked >= 0]
        hit = len(self.gains) - 1 - picked
        before = spro[picked] - self.gains[hit]
        fpr = np.stack([self.above[hit], self.at_least[hit]], axis=1).ravel() / self.negatives
        values = np.stack([before, spro[picked]], axis=1).ravel()
        return np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], values, [spro[-1]]])


def check_limit(limit: float) -> None:
    """Check that a limit of the false positive rate is in (0, 1].

    Args:
        limit: Largest false positive rate.

    Raises:
        ValueError: If the limit is no number in (0, 1].
    """
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 1:
        raise ValueError(f"The false positive rate limit must lie in (0, 1], got {limit!r}; the usual one is 0.05.")


def merge_hits(scores: Sequence[FloatArray], saturation_areas: Sequence[int]) -> Hits:
    """Merge the hits of all defects into the increase of the mean sPRO per distinct score.

    Args:
        scores: One array of scores per defect, the highest ones inside it.
        saturation_areas: Saturation area per defect.

    Returns:
        Distinct scores in ascending order, and their gains.
    """
    every = np.concatenate(scores)
    gains = np.repeat(1.0 / (np.asarray(saturation_areas) * len(scores)), [len(s) for s in scores])
    order = np.argsort(every)
    every, gains = every[order], gains[order]
    first = np.flatnonzero(np.append(True, every[1:] != every[:-1])[: len(every)])
    return Hits(every[first], np.add.reduceat(gains, first))


def add_counts(negatives: FloatArray, thresholds: FloatArray, above: CountArray, at_least: CountArray) -> None:
    """Add, in place, how many negatives lie above and at or above each threshold.

    Args:
        negatives: ``(N,)`` scores of negative pixels, ascending.
        thresholds: ``(K,)`` ascending.
        above: ``(K,)`` running counts of negatives that are strictly greater.
        at_least: ``(K,)`` running counts of negatives that are greater or equal.
    """
    total = len(negatives)
    for block in _blocks(len(thresholds)):
        found = thresholds[block]
        first = np.searchsorted(negatives, found, side="left")
        end = first.copy()
        tied = np.flatnonzero(negatives[np.minimum(first, total - 1)] == found) if total else first[:0]
        end[tied] = np.searchsorted(negatives, found[tied], side="right")
        at_least[block] += (total - first).astype(at_least.dtype)
        above[block] += (total - end).astype(above.dtype)


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, length, _BLOCK))
