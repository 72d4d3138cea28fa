"""Merging of the branch maps: calibration on normal images, eq. 11, smoothing (paper, section III-C)."""

import math

import torch
import torch.nn.functional as F
from anomalib.models.components import GaussianBlur2d
from torch import Tensor, nn

from anomalib_npgmf.merging.statistics import LEAST_SPREAD, MapStatistics

SMOOTHING_SIGMA = 4.0  # pixels of a map of 256 x 256
BRANCHES = ("logical", "structural")
COMPOSITION_MARGIN = 0.25  # deviations; chosen on development seeds, see docs/findings.md


class CompositionMerger(nn.Module):
    """Adds the composition map to the merged map of the branches.

    Both are brought to the same unit, the standard deviation of the image score over normal images:
    ``max((S - mu_S) / sd_S, (C - mu_C) / sd_C - 1/4)``. S is the branches' map, whose maximum is their image score, and
    C the composition map, whose maximum is the composition distance. The image score, the maximum of the result, is
    then the larger one of the two calibrated scores, where the composition gives way by a quarter of a deviation: of
    two scores that are maxima of noise on a damaged but complete image, the one that may see the damage decides.

    Attributes:
        mean: mu_S and mu_C.
        std: sd_S and sd_C.

    Example:
        >>> merger = CompositionMerger()
        >>> merger.calibrate(torch.tensor([4.0, 6.0]), torch.tensor([0.5, 1.5]))
        >>> branches, composition = torch.tensor([[[[5.0, 7.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
        >>> round(merger(branches, composition).amax().item(), 4)  # (3 - 1) / 0.7071 - 0.25
        2.5784
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))

    def calibrate(self, scores: Tensor, distances: Tensor, held_out: Tensor | None = None) -> None:
        """Fix mean and standard deviation.

        Args:
            scores: Image scores of the branches on normal images that nothing was fitted on, [N].
            distances: Composition distances of the same images, [N].
            held_out: Number, mean and sum of squared deviations of more distances, [3]; see
                `anomalib_npgmf.composition.CompositionBranch`.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        for index, values in enumerate((scores, distances)):
            statistics = MapStatistics()
            statistics.update(values)
            if index == 1 and held_out is not None:
                number, mean, squares = held_out.tolist()
                statistics.combine(int(number), mean, squares)
            if statistics.count and not math.isfinite(statistics.mean):
                msg = "Image scores of the calibration images are not finite; check the images."
                raise ValueError(msg)
            # A handful of images may agree by chance, and a single one always does.
            least = max(LEAST_SPREAD * abs(statistics.mean), 1e-6)
            spread = statistics.sample_std if statistics.count > 1 else abs(statistics.mean)
            self.mean[index], self.std[index] = statistics.mean, max(spread, least)

    def forward(self, branches: Tensor | None, composition: Tensor) -> Tensor:
        """Combine.

        Args:
            branches: Merged map of the branches, [B, 1, H, W]; ``None`` for the composition alone.
            composition: Composition map, [B, 1, H, W].

        Returns:
            [B, 1, H, W].
        """
        surplus = self.of_composition(composition)
        return surplus if branches is None else torch.maximum(self.of_branches(branches), surplus)

    def of_branches(self, merged: Tensor) -> Tensor:
        """The branches' merged map in the common unit; any shape."""
        return (merged - self.mean[0]) / self.std[0]

    def of_composition(self, composition: Tensor) -> Tensor:
        """The composition map in the common unit, less the margin; any shape."""
        return (composition - self.mean[1]) / self.std[1] - COMPOSITION_MARGIN


class MapMerger(nn.Module):
    """Eq. 11: ``S = w_log (S_log - mu_log) / sd_log + w_str (S_str - mu_str) / sd_str``, then a Gaussian filter.

    Or the maximum, an addition to the paper: the larger one of the two calibrated and smoothed maps. Where one branch
    alone sees an anomaly, a sum dilutes what it says with the other one's noise.

    Args:
        size: Height and width at which the maps meet.
        logical_weight: w_log.
        structural_weight: w_str.
        maximum: Whether the maximum takes the place of the weighted sum.
        composition: Whether a composition map joins the branches' maps.

    Attributes:
        mean: mu of the logical and the structural map.
        std: Their standard deviation.
        composition: Where the composition map joins, see `CompositionMerger`.

    Example:
        >>> merger = MapMerger((64, 64), 1.0, 3.0)
        >>> merger.calibrate({"logical": (1.0, 0.5), "structural": (2.0, 1.0)})
        >>> merged = merger({"logical": torch.full((1, 1, 64, 64), 2.0), "structural": torch.full((1, 1, 8, 8), 3.0)})
        >>> round(merged.mean().item(), 4)  # 1 * (2 - 1) / 0.5 + 3 * (3 - 2) / 1
        5.0
    """

    mean: Tensor
    std: Tensor
    calibrated: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        logical_weight: float = 1.0,
        structural_weight: float = 3.0,
        *,
        maximum: bool = False,
        composition: bool = False,
    ) -> None:
        super().__init__()
        for name, weight in (("logical_weight", logical_weight), ("structural_weight", structural_weight)):
            if not weight >= 0:
                msg = f"{name} must not be negative, but is {weight}."
                raise ValueError(msg)
        if logical_weight == 0 and structural_weight == 0:
            msg = "logical_weight and structural_weight must not both be zero."
            raise ValueError(msg)
        self.size = size
        self.maximum = maximum
        self.weights = {"logical": logical_weight, "structural": structural_weight}
        self.register_buffer("mean", torch.zeros(len(BRANCHES)))
        self.register_buffer("std", torch.ones(len(BRANCHES)))
        self.register_buffer("calibrated", torch.tensor(False))
        self.composition = CompositionMerger() if composition else None
        self.blur = GaussianBlur2d(sigma=SMOOTHING_SIGMA * min(size) / 256)

    def calibrate(self, statistics: dict[str, tuple[float, float]]) -> None:
        """Fix mean and standard deviation.

        Args:
            statistics: Mean and standard deviation over all pixels of normal images, by branch.

        Raises:
            ValueError: If a map is constant or holds NaN.
        """
        for branch, (mean, std) in statistics.items():
            if not std > 0:
                msg = f"The {branch} map has a standard deviation of {std} on the calibration images; check them."
                raise ValueError(msg)
            index = BRANCHES.index(branch)
            self.mean[index], self.std[index] = mean, std
        self.calibrated.fill_(True)

    def resize(self, branch_map: Tensor) -> Tensor:
        """Bring a branch map [B, 1, h, w] to ``size`` (bilinear)."""
        if branch_map.shape[-2:] == self.size:
            return branch_map
        return F.interpolate(branch_map, size=self.size, mode="bilinear", align_corners=False)

    def smoothed(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is merged: the summands of eq. 11, or the calibrated maps of which the maximum is taken, smoothed.

        Args:
            maps: Raw maps by branch, [B, 1, h, w] each.

        Returns:
            Calibrated, weighted and smoothed maps by branch, [B, 1, H, W]; a single branch counts with weight one, as
            all do in a maximum.
        """
        return {branch: self.blur(part) for branch, part in self._weighted(maps).items()}

    def _weighted(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        branches = [branch for branch in BRANCHES if branch in maps]
        parts = {}
        for branch in branches:
            index = BRANCHES.index(branch)
            weight = self.weights[branch] if len(branches) > 1 and not self.maximum else 1.0
            parts[branch] = weight * (self.resize(maps[branch]) - self.mean[index]) / self.std[index]
        return parts

    def merge_branches(self, maps: dict[str, Tensor]) -> Tensor | None:
        """Merge without the composition map.

        Args:
            maps: Raw maps by branch, [B, 1, h, w] each.

        Returns:
            Merged and smoothed map, [B, 1, H, W]; ``None`` without any.
        """
        if self.maximum:
            smoothed = list(self.smoothed(maps).values())
            return torch.stack(smoothed).amax(dim=0) if smoothed else None
        parts = list(self._weighted(maps).values())
        return self.blur(torch.stack(parts).sum(dim=0)) if parts else None  # smoothing is linear: once is enough

    def calibrated_maps(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map of each part in the unit of the merged map: the parts of a sum, or what a maximum is taken of.

        Args:
            maps: Raw maps by part, [B, 1, h, w] each.

        Returns:
            [B, 1, H, W] by part.
        """
        parts = self.smoothed(maps)
        if self.composition is not None:
            parts = {branch: self.composition.of_branches(part) for branch, part in parts.items()}
            parts["composition"] = self.composition.of_composition(self.resize(maps["composition"]))
        return parts

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Merge the maps that are present.

        Args:
            maps: Raw maps, [B, 1, h, w] each, by branch, and the composition map as ``"composition"``.

        Returns:
            Merged map, [B, 1, H, W].

        Raises:
            ValueError: If there is no map.
        """
        merged = self.merge_branches(maps)
        composition = maps.get("composition")
        if self.composition is not None and composition is not None:
            return self.composition(merged, self.resize(composition))
        if merged is None:
            msg = f"There is nothing to merge among {sorted(maps)}; give a map of a branch."
            raise ValueError(msg)
        return merged
