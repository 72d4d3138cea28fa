"""What the composition adds to the branches' merged map and score."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_npgmf.merging.statistics import MIN_RELATIVE_STD, MapStatistics

# Chosen on development seeds of SyntheticLOCO and on photographs, see docs/findings.md. Scores in standard deviations.
# Weight w, largest lead b and further lead f of histograms of cells and of the whole image, see `CompositionMerger`.
CELL_WEIGHT, CELL_LEAD, CELL_FURTHER_LEAD = 240.0, 1.0, 3.0
WHOLE_WEIGHT, WHOLE_LEAD = 45.0, 2.0
LOGICAL_WEIGHT, LOGICAL_LIMIT = 2.0, 3.0  # weight v and limit t of the map of the logical branch


class MapRule(NamedTuple):
    """Numbers of the rule by which `CompositionMerger` raises the map, in standard deviations.

    Attributes:
        lead_level: Score that a histogram must exceed to change the map.
        lead_allowance: Subtracted from the branches' score before a histogram is compared with it.
        further_level: Lead beyond which the further lead of cells counts.
        logical_level: What the map of the logical branch must exceed.
        logical_quiet_limit: Added to the limit of the logical map where the branches see nothing.
        quiet_score: Score of the branches at which they are taken to see the anomaly themselves. What is allowed where
            they see nothing decreases linearly from a score of zero to this one.
    """

    lead_level: float = 0.5
    lead_allowance: float = 1.0
    further_level: float = 3.0
    logical_level: float = 2.0
    logical_quiet_limit: float = 5.0
    quiet_score: float = 5.0


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
    mean and standard deviation over normal images: ``max(s, c)`` with ``s = (max S - mu_S) / sd_S`` for the branches'
    map S and ``c = (C - mu_C) / sd_C`` for the composition score C, the largest of its histograms.

    The merged map is ``max(S', min(S', q) + max(m, l))`` for the standardised map ``S' = (S - mu_S) / sd_S``, its 0.95
    quantile q over the pixels of normal images, and two terms that are zero unless a histogram has a lead:

    - ``m = max_h w_h r_h (min(g_h, b_h) + u min(max(g_h - 3, 0), f_h))``, where the surplus r_h of a histogram h is.
      The lead ``g_h = max(c_h - max(s - 1, 1/2), 0)`` is by how much the score c_h of the histogram exceeds that of the
      branches less one standard deviation, and half a standard deviation. Histograms of grid cells have a large weight
      and a low limit (w = 240, b = 1, f = 3), because they localise well and few normal images have a lead there;
      those of the whole image have one more often (w = 45, b = 2, f = 0).
    - ``l = min(v max_h g_h max(L - 2, 0), t + 5 u)`` for the calibrated map L of the logical branch (v = 2, t = 3).
      What is missing leaves no surplus; the logical branch may show where it belongs. Its map is too noisy to be shown
      like this in every image.

    Both terms have narrow limits where a branch marks something itself; where the branches see nothing they may be
    larger: ``u = 1 - s / 5``, between 0 and 1. No pixel is decreased. The composition alone, without branches, has the
    map m with ``g_h = max(c_h, 0)`` and ``u = 1``.

    Args:
        grids: Cells per side of each histogram's grid, [M]; 1 for the whole image.

    Attributes:
        mean: mu_S and mu_C, of max S and of C over normal images.
        std: Their standard deviations sd_S and sd_C.
        margins: Subtracted from the scores of the branches and of the composition, in standard deviations: zero, except
            0.25 for the composition in checkpoints from before version 0.2.
        weight: w_h, [M].
        largest_lead: b_h, [M].
        further_lead: f_h, [M].
        logical_map_weight: v; zero in checkpoints of before.
        logical_map_limit: t.
        normal_level: q.
        rule: The other numbers, which are the program's and not the checkpoint's.

    Example:
        >>> merger = CompositionMerger([1])
        >>> merger.calibrate(torch.tensor([4.0, 6.0]), torch.tensor([0.5, 1.5]), normal_level=2.0)
        >>> branches, surplus = torch.tensor([[[[5.0, 7.0]]]]), torch.tensor([[[[0.1, 0.0]]]])
        >>> merged = merger(branches, merger.raised(surplus, torch.tensor([[4.0]]), branches), torch.tensor([[4.0]]))
        >>> round(merged.scores.item(), 4)  # of the composition, (4 - 1) / 0.7071; of the branches 2 / 1.4142
        4.2426
        >>> [round(value, 4) for value in merged.maps.flatten().tolist()]  # -2.1213 + 45 * 0.1 * min(3.7426, 2)
        [6.8787, 1.4142]
    """

    mean: Tensor
    std: Tensor
    margins: Tensor
    weight: Tensor
    largest_lead: Tensor
    further_lead: Tensor
    logical_map_weight: Tensor
    logical_map_limit: Tensor
    normal_level: Tensor
    rule = MapRule()

    def __init__(self, grids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))
        self.register_buffer("margins", torch.zeros(2))
        self.register_buffer("weight", torch.tensor([CELL_WEIGHT if grid > 1 else WHOLE_WEIGHT for grid in grids]))
        self.register_buffer("largest_lead", torch.tensor([CELL_LEAD if grid > 1 else WHOLE_LEAD for grid in grids]))
        self.register_buffer("further_lead", torch.tensor([CELL_FURTHER_LEAD if grid > 1 else 0.0 for grid in grids]))
        self.register_buffer("logical_map_weight", torch.tensor(LOGICAL_WEIGHT))
        self.register_buffer("logical_map_limit", torch.tensor(LOGICAL_LIMIT))
        self.register_buffer("normal_level", torch.tensor(0.0))

    def calibrate(
        self, scores: Tensor, composition_scores: Tensor, cv_stats: Tensor | None = None, *, normal_level: float
    ) -> None:
        """Set mean, standard deviation and the quantile of normal pixels.

        Args:
            scores: Maxima of the branches' merged maps on calibration images, not standardised, [N].
            composition_scores: Composition scores of the same images, the largest of their histograms, [N].
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

    def forward(self, branches: Tensor | None, raised: Tensor, scores: Tensor) -> Merged:
        """Merge the composition with the map of the branches.

        Args:
            branches: Merged map of the branches, [B, 1, H, W]; ``None`` for the composition alone.
            raised: Result of `raised`, smoothed, [B, 1, H, W].
            scores: Scores of the histograms, [B, M].
        """
        composed = self.of_composition(scores)
        if branches is None:
            return Merged(composed, raised)
        standardised = self.of_branches(branches)
        score = self.of_peaks(branches.amax(dim=(1, 2, 3)))
        shown = standardised.minimum(self.normal_level) + raised
        return Merged(score.maximum(composed), standardised.maximum(shown))

    def of_branches(self, merged: Tensor) -> Tensor:
        """Standardise the branches' merged map, any shape."""
        return (merged - self.mean[0]) / self.std[0]

    def of_peaks(self, peaks: Tensor) -> Tensor:
        """Image scores of the branches, any shape, from the maxima of their merged maps."""
        return self.of_branches(peaks) - self.margins[0]

    def of_composition(self, scores: Tensor) -> Tensor:
        """Image scores of the composition, [B]: the largest of its histograms' scores [B, M], standardised."""
        return self._standardised(scores).amax(dim=-1)

    def raised(
        self, surplus: Tensor, scores: Tensor, branches: Tensor | None = None, logical: Tensor | None = None
    ) -> Tensor:
        """By how much the composition raises the standardised map, [B, 1, H, W]; not smoothed yet.

        Args:
            surplus: Surplus of each histogram, [B, M, H, W].
            scores: Scores of the histograms, [B, M].
            branches: Merged map of the branches, [B, 1, h, w]; ``None`` without branches.
            logical: Calibrated map of the logical branch, [B, 1, H, W]; ``None`` without it.
        """
        rule, lead, quiet = self.rule, self._standardised(scores), torch.ones_like(scores[:, :1])
        if branches is not None:
            score = self.of_peaks(branches.amax(dim=(1, 2, 3))).unsqueeze(-1)
            lead = lead - (score - rule.lead_allowance).clamp(min=rule.lead_level)
            quiet = (1 - score / rule.quiet_score).clamp(0, 1)
        lead = lead.relu()
        further = quiet * (lead - rule.further_level).relu().minimum(self.further_lead)
        raise_by = self.weight * (lead.minimum(self.largest_lead) + further)
        raised = (raise_by[..., None, None] * surplus).amax(dim=1, keepdim=True)
        if logical is None:
            return raised
        slope = self.logical_map_weight * lead.amax(dim=-1)
        limit = self.logical_map_limit + rule.logical_quiet_limit * quiet
        shown = (slope[:, None, None, None] * (logical - rule.logical_level).relu()).minimum(limit[..., None, None])
        return raised.maximum(shown)

    def _standardised(self, scores: Tensor) -> Tensor:
        return (scores - self.mean[1]) / self.std[1] - self.margins[1]
