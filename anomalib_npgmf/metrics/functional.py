"""AU-sPRO as a pure function: the saturated per-region overlap of MVTec LOCO AD, without any approximation.

Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
Localization", IJCV 130, 2022, section 4. `anomalib_npgmf.metrics.curve` says how the area is computed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomalib_npgmf.metrics.curve import Hits, SproCurve, add_counts, merge_hits
from anomalib_npgmf.metrics.scores import FloatArray, as_scores


def _spro_update(scores: FloatArray, mask: npt.NDArray[np.bool_], saturation_area: int) -> FloatArray:
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
