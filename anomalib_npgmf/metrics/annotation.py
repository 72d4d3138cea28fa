"""Data of one test image and its defects for the sPRO curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomalib_npgmf.metrics.functional import _spro_update
from anomalib_npgmf.metrics.ground_truth import GOOD, DefectType, category_of, image_size, kind_of, read_defects
from anomalib_npgmf.metrics.scores import FloatArray

LoadMap = Callable[[Path], FloatArray]

# Row and column step of the sample of negative pixels, from which a score quantile is estimated.
_STRIDE = 16


@dataclass
class AnnotatedImage:
    """Data kept of a test image; small enough to keep it for all images of a category.

    Attributes:
        path: The image.
        size: Its height and width.
        labels: Kind of anomaly and defect type, per defect.
        hits: Scores of the pixels that raise the sPRO, per defect.
        areas: Saturation area, per defect.
        undersized: Defects with fewer pixels than their absolute saturation threshold.
        negatives: Number of pixels that belong to no defect.
        marked: Pixels that belong to a defect, one bit per pixel; None for a good image.
        sample: Some scores of negative pixels.
    """

    path: Path
    size: tuple[int, int]
    labels: list[tuple[str, str]] = field(default_factory=list)
    hits: list[FloatArray] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    undersized: list[str] = field(default_factory=list)
    negatives: int = 0
    marked: npt.NDArray[np.uint8] | None = None
    sample: FloatArray | None = None

    def negatives_of(self, scores: FloatArray) -> FloatArray:
        """Scores of the pixels that belong to no defect.

        Args:
            scores: ``(H, W)`` map of the image.

        Returns:
            ``(negatives,)``.
        """
        if self.marked is None:
            return scores.ravel()
        marked = np.unpackbits(self.marked, count=scores.size).view(np.bool_)
        return scores.ravel()[~marked]

    def holds(self, subset: str) -> bool:
        """Whether a defect is of this kind or type.

        Args:
            subset: Kind of anomaly or defect type.

        Returns:
            False for a good image.
        """
        return any(subset in labels for labels in self.labels)

    def in_subset(self, subset: str) -> bool:
        """Whether the image's negative pixels count for a subset: it is good, or has such a defect.

        Args:
            subset: Kind of anomaly or defect type.

        Returns:
            True if its negatives count.
        """
        return not self.labels or self.holds(subset)


def annotate(
    path: Path, load_map: LoadMap, config: Callable[[Path], dict[int, DefectType]], *, sample: bool
) -> AnnotatedImage:
    """Read the defects of a test image and the scores inside them.

    Args:
        path: Test image in the layout of MVTec LOCO AD.
        load_map: Returns the ``(H, W)`` map of an image at its original size.
        config: Returns the defect types of a category folder.
        sample: Whether to sample the scores of negative pixels as well, which needs the maps of good images.

    Returns:
        Data of the image.

    Raises:
        FileNotFoundError: If the config or the ground truth is missing.
        ValueError: If the ground truth is invalid, or the path has another layout.
    """
    size = image_size(path)
    image = AnnotatedImage(path, size, negatives=size[0] * size[1])
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path} is no test image of MVTec LOCO AD: expected <category>/test/<kind>/<name>.")
    if kind == GOOD and not sample:
        return image
    scores = load_map(path)
    negative = np.ones(size, dtype=bool)
    if kind != GOOD:
        for defect in read_defects(path, config(category_of(path))):
            image.hits.append(_spro_update(scores, defect.mask, defect.saturation_area))
            image.areas.append(defect.saturation_area)
            image.labels.append((kind, defect.name))
            image.undersized += [f"{defect.path} ({defect.name})"] * defect.undersized
            negative &= ~defect.mask
        image.marked = np.packbits(~negative)
        image.negatives = int(np.count_nonzero(negative))
    if sample:
        grid = (slice(None, None, _STRIDE), slice(None, None, _STRIDE))
        image.sample = scores[grid][negative[grid]]
    return image
