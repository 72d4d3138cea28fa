"""AU-sPRO as pure functions: the saturated per-region overlap of MVTec LOCO AD, without any approximation.

Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
Localization", IJCV 130, 2022, section 4.

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
import torch
from torch import Tensor

from anomalib_npgmf.metrics.scores import FloatArray, as_scores

BoolArray = npt.NDArray[np.bool_]
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

    It runs from (0, 0), through ``(above, at_least) / negatives`` of each hit from the highest score to the lowest, to
    (1, 1); straight lines join the points.

    Attributes:
        gains: ``(K,)`` increase of the mean sPRO per hit, ascending in score.
        above: ``(K,)`` negative pixels with a higher score than the hit.
        at_least: ``(K,)`` negative pixels with at least the score of the hit.
        negatives: number of negative pixels of all images.
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


def _spro_update(scores: FloatArray, mask: BoolArray, saturation_area: int) -> FloatArray:
    """Scores of the pixels that raise the sPRO of one defect, each by ``1 / saturation_area``.

    Args:
        scores: ``(H, W)`` anomaly map.
        mask: ``(H, W)`` pixels of the defect.
        saturation_area: Number of pixels at which the defect counts as found.

    Returns:
        The highest ``min(saturation_area, area)`` scores inside the mask, unordered.
    """
    inside = scores[mask]
    if saturation_area < len(inside):
        inside = np.partition(inside, len(inside) - saturation_area)[-saturation_area:]
    return inside


def merge_hits(scores: Sequence[FloatArray], saturation_areas: Sequence[int]) -> Hits:
    """Merge the hits of all defects into the increase of the mean sPRO per distinct score.

    Args:
        scores: One array of scores per defect, from ``_spro_update``.
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


def _spro_compute(hits: Hits, negatives: FloatArray, limits: Sequence[float]) -> Tensor:
    """AU-sPRO from merged hits and all negative scores.

    Args:
        hits: From ``merge_hits``.
        negatives: ``(N,)`` scores of all pixels outside defects, in any order.
        limits: False positive rate limits.

    Returns:
        ``(len(limits),)`` float64.
    """
    above, at_least = (np.zeros(len(hits.scores), dtype=np.uint64) for _ in range(2))
    add_counts(np.sort(negatives), hits.scores, above, at_least)
    curve = SproCurve(hits.gains, above, at_least, len(negatives))
    return torch.tensor([curve.area(limit) for limit in limits], dtype=torch.float64)


def auc_spro(
    anomaly_maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    saturation_areas: Sequence[Sequence[int]],
    limits: Sequence[float] = (0.05,),
) -> Tensor:
    """Exact area under the saturated per-region overlap curve (AU-sPRO).

    A pixel is positive when its score is strictly greater than the threshold; every distinct score is a threshold. The
    mean runs over all defects of all images; false positives are positive pixels that no defect of their image marks,
    pooled over all images, normal ones included (Bergmann et al. 2022, section 4). Counted on the CPU; tensors of any
    device and floating type are accepted.

    Args:
        anomaly_maps: One ``(H, W)`` map per image; sizes may differ between images.
        masks: One boolean ``(C, H, W)`` stack of defects per image, ``C = 0`` for a normal image. They may overlap.
        saturation_areas: ``C`` positive areas per image, in pixels.
        limits: False positive rates up to which to integrate, each in (0, 1].

    Returns:
        ``(len(limits),)`` float64 values in [0, 1].

    Raises:
        ValueError: If a map is not finite, shapes or lengths disagree, a mask is empty, a saturation area is not
            positive, or there is no defect or no negative pixel at all.

    Example:
        One 4 x 4 image with a defect of four pixels that saturates at two. Twelve pixels are negative, so each is a
        false positive rate of 1/12. From the top: 0.9 is a defect pixel (sPRO 1/2), 0.8 is a false positive, 0.7 is
        shared by a defect pixel and a false positive (sPRO 1, saturated), and the rest cannot add anything. The curve
        is 1/2 from 0 to 1/12, rises to 1 until 2/12 and stays there: up to 1/4, the area is
        (1/2 + 3/4 + 1) / 12 = 2.25 / 12, and divided by 1/4 it is 0.75.

        >>> import torch
        >>> scores = torch.tensor([
        ...     [0.9, 0.7, 0.1, 0.0],
        ...     [0.2, 0.1, 0.8, 0.0],
        ...     [0.0, 0.7, 0.0, 0.0],
        ...     [0.0, 0.0, 0.0, 0.3],
        ... ])
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, :2, :2] = True
        >>> auc_spro([scores], [mask], [[2]], limits=[0.25]).item()
        0.75
    """
    if not len(anomaly_maps) == len(masks) == len(saturation_areas):
        raise ValueError("Give as many stacks of masks and lists of saturation areas as there are anomaly maps.")
    hits, areas, negatives = [], [], []
    for index, (anomaly_map, stack, image_areas) in enumerate(zip(anomaly_maps, masks, saturation_areas, strict=True)):
        scores = as_scores(anomaly_map, f"number {index}")
        channels = stack.detach().cpu().numpy().astype(bool)
        if channels.shape != (len(image_areas), *scores.shape):
            raise ValueError(
                f"Masks of image {index} have shape {channels.shape}, expected {(len(image_areas), *scores.shape)}: "
                "one mask per saturation area, of the size of the anomaly map."
            )
        for mask, area in zip(channels, image_areas, strict=True):
            if area < 1 or not mask.any():
                raise ValueError(f"Image {index} has a defect without pixels or with saturation area {area}; drop it.")
            hits.append(_spro_update(scores, mask, int(area)))
            areas.append(int(area))
        negatives.append(scores[~channels.any(axis=0)])
    if not hits:
        raise ValueError("AU-sPRO is not defined without a defect; pass at least one image with a mask.")
    pooled = np.concatenate(negatives)
    if not len(pooled):
        raise ValueError("Every pixel is defective, so there is no false positive rate; add a normal image.")
    return _spro_compute(merge_hits(hits, areas), pooled, limits)


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, length, _BLOCK))
