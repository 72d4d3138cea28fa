"""What the composition adds to the branches' merged map and score."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_npgmf.merging.statistics import MIN_RELATIVE_STD, MapStatistics

# Chosen on development seeds of SyntheticLOCO and on photographs, see docs/findings.md.
BRANCH_MARGIN = 0.5  # standard deviations, subtracted from the branches' score
LARGEST_LEAD = 3.0  # standard deviations; a larger lead over the branches does not raise the map further
SURPLUS_WEIGHT = 45.0  # raise of the map per standard deviation of the lead, where the surplus is one


class Merged(NamedTuple):
    """Result of merging for a batch.

    Attributes:
        scores: Image scores, [B].
        maps: Merged map, [B, 1, H, W].
    """

    scores: Tensor
    maps: Tensor


class CompositionMerger(nn.Module):
    """Adds the composition to the merged map of the branches; an addition to the paper.

    The image score is the larger of two scores, that of the branches and that of the composition, each standardised by
    mean and standard deviation over normal images: ``max(s, c)`` with ``s = (max S - mu_S) / sd_S - 1/2`` for the
    branches' map S and ``c = (C - mu_C) / sd_C`` for the composition score C. Half a standard deviation is
    subtracted because s is a maximum over all pixels, which reaches high values on normal images by chance.

    The merged map is ``max(S', min(S', q) + 45 r min(max(g, 0), 3))`` for the standardised map ``S' = (S - mu_S) /
    sd_S``, the surplus r and the 0.95 quantile q of S' over the pixels of normal images. ``g = c' - max(s, 0)`` is the
    lead of the composition over the branches; c' is c of the histograms alone, because the memory bank of regions has
    no surplus. Where g is positive, pixels with surplus are raised, the more the larger g is. No pixel of the branches
    is lowered.

    Attributes:
        mean: mu_S and mu_C, of max S and of C over normal images.
        std: Their standard deviations sd_S and sd_C.
        margins: Standard deviations subtracted from the scores of the branches and of the composition: 0.5 and 0; in
            checkpoints from before version 0.2, 0 and 0.25.
        normal_level: q.

    Example:
        >>> merger = CompositionMerger()
        >>> merger.calibrate(torch.tensor([4.0, 6.0]), torch.tensor([0.5, 1.5]), normal_level=2.0)
        >>> branches, surplus = torch.tensor([[[[5.0, 7.0]]]]), torch.tensor([[[[0.1, 0.0]]]])
        >>> merged = merger(branches, surplus, torch.tensor([3.0]), torch.tensor([3.0]))
        >>> round(merged.scores.item(), 4)  # of the composition, (3 - 1) / 0.7071; of the branches 2 / 1.4142 - 0.5
        2.8284
        >>> [round(value, 4) for value in merged.maps.flatten().tolist()]  # -2.1213 + 45 * 0.1 * (2.8284 - 0.9142)
        [6.4926, 1.4142]
    """

    mean: Tensor
    std: Tensor
    margins: Tensor
    normal_level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))
        self.register_buffer("margins", torch.tensor([BRANCH_MARGIN, 0.0]))
        self.register_buffer("normal_level", torch.tensor(0.0))

    def calibrate(
        self, scores: Tensor, composition_scores: Tensor, cv_stats: Tensor | None = None, *, normal_level: float
    ) -> None:
        """Set mean, standard deviation and the quantile of normal pixels.

        Args:
            scores: Maxima of the branches' merged maps on calibration images, not standardised, [N].
            composition_scores: Composition scores of the same images, see `CompositionOutput`, [N].
            cv_stats: Count, mean and sum of squared differences from the mean of the cross-validated scores of the
                training images, [3]; they are pooled with ``composition_scores``.
            normal_level: Quantile 0.95 of the pixels of the branches' merged maps, not yet standardised.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        for index, values in enumerate((scores, composition_scores)):
            statistics = MapStatistics()
            statistics.update(values)
            if index == 1 and cv_stats is not None:
                number, mean, squares = cv_stats.tolist()
                statistics.combine(int(number), mean, squares)
            if statistics.count and not math.isfinite(statistics.mean):
                msg = "Image scores of the calibration images are not finite; check the images."
                raise ValueError(msg)
            # The scores of a handful of images may agree by chance; that of a single one has no spread at all.
            floor = max(MIN_RELATIVE_STD * abs(statistics.mean), 1e-6)
            std = statistics.sample_std if statistics.count > 1 else abs(statistics.mean)
            self.mean[index], self.std[index] = statistics.mean, max(std, floor)
        self.normal_level.fill_((normal_level - float(self.mean[0])) / float(self.std[0]))

    def forward(
        self, branches: Tensor | None, surplus: Tensor, composition_score: Tensor, histogram_score: Tensor
    ) -> Merged:
        """Merge the composition with the map of the branches.

        Args:
            branches: Merged map of the branches, [B, 1, H, W]; ``None`` for the composition alone.
            surplus: Smoothed surplus, [B, 1, H, W], in [0, 1].
            composition_score: Composition scores, [B].
            histogram_score: Those of the histograms, [B].
        """
        composed = self.of_composition(composition_score)
        if branches is None:
            return Merged(composed, self.of_surplus(surplus, histogram_score))
        standardised = self.of_branches(branches)
        score = self.of_peaks(branches.amax(dim=(1, 2, 3)))
        shown = standardised.minimum(self.normal_level) + self.of_surplus(surplus, histogram_score, score)
        return Merged(score.maximum(composed), standardised.maximum(shown))

    def of_branches(self, merged: Tensor) -> Tensor:
        """Standardise the branches' merged map, any shape."""
        return (merged - self.mean[0]) / self.std[0]

    def of_peaks(self, peaks: Tensor) -> Tensor:
        """Image scores of the branches, any shape, from the maxima of their merged maps."""
        return self.of_branches(peaks) - self.margins[0]

    def of_composition(self, score: Tensor) -> Tensor:
        """Image scores of the composition, any shape: its scores, standardised."""
        return (score - self.mean[1]) / self.std[1] - self.margins[1]

    def of_surplus(self, surplus: Tensor, histogram_score: Tensor, branches: Tensor | None = None) -> Tensor:
        """What the composition adds to the standardised map, [B, 1, H, W].

        Args:
            surplus: Smoothed surplus, [B, 1, H, W].
            histogram_score: Composition scores of the histograms alone, [B].
            branches: Image scores of the branches, [B]; ``None`` without branches.
        """
        lead = self.of_composition(histogram_score)
        if branches is not None:
            lead = lead - branches.relu()
        return SURPLUS_WEIGHT * lead.relu().clamp_max(LARGEST_LEAD).view(-1, 1, 1, 1) * surplus
