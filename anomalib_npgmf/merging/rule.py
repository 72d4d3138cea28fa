"""Merging of the branch maps: calibration on normal images, eq. 11, smoothing (paper, section III-C)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.merging.composition import CompositionMerger, Merged
from anomalib_npgmf.precision import in_single_precision

BRANCHES = ("logical", "structural")
NORMAL_QUANTILE = 0.95  # quantile q of the pixels of normal images, see `CompositionMerger`


class MapMerger(nn.Module):
    """Eq. 11: ``S = w_log (S_log - mu_log) / sd_log + w_str (S_str - mu_str) / sd_str``, then a Gaussian filter.

    With ``maximum``, an addition to the paper, it is the pixelwise maximum of the two calibrated and smoothed maps:
    where only one branch detects an anomaly, a sum would add the other branch's noise.

    Maps are merged and smoothed at ``size``, then resized to ``output_size``; for a maximum each map is smoothed and
    resized first. Without composition the score is the maximum of the resized map.

    Args:
        size: Height and width at which maps are merged.
        logical_weight: w_log; the model gives `ModelConfig.logical_weight`.
        structural_weight: w_str; the model gives `ModelConfig.structural_weight`.
        blur: Gaussian filter, [B, 1, H, W] to [B, 1, H, W].
        maximum: Whether to take the maximum instead of the weighted sum.
        composition: Cells per side of each histogram of the composition, see `CompositionMerger`; ``None`` without one.
        output_size: Height and width of the merged map; ``None`` for ``size``.

    Attributes:
        mean: Mean over all pixels of normal images, of the logical and the structural map, [2].
        std: Standard deviation of the same, [2].
        composition: Merger of the composition map, see `CompositionMerger`; ``None`` without one.
        calibrated: Whether `calibrate` was called.

    Raises:
        ValueError: If a weight is negative or both are zero.

    Example:
        >>> merger = MapMerger((64, 64), 1.0, 3.0, blur=nn.Identity())
        >>> merger.calibrate({"logical": (1.0, 0.5), "structural": (2.0, 1.0)})
        >>> merged = merger({"logical": torch.full((1, 1, 64, 64), 2.0), "structural": torch.full((1, 1, 8, 8), 3.0)})
        >>> round(merged.scores.item(), 4)  # 1 * (2 - 1) / 0.5 + 3 * (3 - 2) / 1
        5.0
    """

    mean: Tensor
    std: Tensor
    calibrated: Tensor
    output_size: tuple[int, int]

    def __init__(
        self,
        size: tuple[int, int],
        logical_weight: float = 1.0,
        structural_weight: float = 3.0,
        *,
        blur: nn.Module,
        maximum: bool = False,
        composition: Sequence[int] | None = None,
        output_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, weight in (("logical_weight", logical_weight), ("structural_weight", structural_weight)):
            if not weight >= 0:
                msg = f"{name} must not be negative, but is {weight}."
                raise ValueError(msg)
        if logical_weight == 0 and structural_weight == 0:
            msg = "logical_weight and structural_weight must not both be zero."
            raise ValueError(msg)
        self.size, self.output_size = size, output_size or size
        self.maximum = maximum
        self.weights = {"logical": logical_weight, "structural": structural_weight}
        self.register_buffer("mean", torch.zeros(len(BRANCHES)))
        self.register_buffer("std", torch.ones(len(BRANCHES)))
        self.register_buffer("calibrated", torch.tensor(False))
        self.composition = None if composition is None else CompositionMerger(composition)
        self.blur = blur

    def calibrate(self, statistics: dict[str, tuple[float, float]]) -> None:
        """Set mean and standard deviation.

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

    def require_calibration(self) -> None:
        """Raise RuntimeError if the model is not calibrated; training calibrates it after every epoch."""
        if not self.calibrated:
            msg = "This Npgmf model has not been trained: fit it or load a checkpoint (ckpt_path) first."
            raise RuntimeError(msg)

    def resize(self, branch_map: Tensor) -> Tensor:
        """Bring a branch map [B, 1, h, w] to ``size`` (bilinear)."""
        if branch_map.shape[-2:] == self.size:
            return branch_map
        return F.interpolate(branch_map, size=self.size, mode="bilinear", align_corners=False)

    @in_single_precision
    def smoothed(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Calibrated, weighted and smoothed maps: the terms of the sum or of the maximum.

        Args:
            maps: Raw maps by branch, [B, 1, h, w] each.

        Returns:
            [B, 1, *output_size] by branch. With a single branch or a maximum the weights are not used.
        """
        return {branch: self._smooth(part) for branch, part in self._weighted(maps).items()}

    def _smooth(self, part: Tensor) -> Tensor:
        """Smooth a map [B, 1, *size] and bring it to ``output_size``."""
        smooth: Tensor = self.blur(part)
        if self.output_size == self.size:
            return smooth
        return F.interpolate(smooth, size=self.output_size, mode="bilinear", align_corners=False)

    def _calibrated(self, maps: dict[str, Tensor], branch: str) -> Tensor:
        """Map of a branch at ``size``, less its mean, by its standard deviation."""
        index = BRANCHES.index(branch)
        return (self.resize(maps[branch]) - self.mean[index]) / self.std[index]

    def _weighted(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        branches = [branch for branch in BRANCHES if branch in maps]
        equal = len(branches) == 1 or self.maximum
        return {
            branch: (1.0 if equal else self.weights[branch]) * self._calibrated(maps, branch) for branch in branches
        }

    @in_single_precision
    def merge_branches(self, maps: dict[str, Tensor]) -> Tensor | None:
        """Merge without the composition map.

        Args:
            maps: Raw maps by branch, [B, 1, h, w] each.

        Returns:
            Merged and smoothed map, [B, 1, *output_size]; ``None`` if there is no map of a branch.
        """
        if self.maximum:
            return self.combined(self.smoothed(maps))
        total = self.combined(self._weighted(maps))
        return None if total is None else self._smooth(total)  # smoothing is linear: once is enough

    def combined(self, terms: dict[str, Tensor]) -> Tensor | None:
        """Sum or maximum of the terms.

        Args:
            terms: By branch, [B, 1, H, W] each. For the output of `smoothed` the result equals `merge_branches`, up to
                rounding.

        Returns:
            [B, 1, H, W]; ``None`` if there are no terms.
        """
        if not terms:
            return None
        stacked = torch.stack(list(terms.values()))
        return stacked.amax(dim=0) if self.maximum else stacked.sum(dim=0)

    @in_single_precision
    def calibrated_maps(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map of each branch on the scale of the merged map, for display.

        With a composition branch, each is standardised by mean and standard deviation of the merged score; therefore
        they do not add up to the merged map.

        Args:
            maps: Raw maps by part, [B, 1, h, w] each.

        Returns:
            [B, 1, *output_size] by part.
        """
        parts = self.smoothed(maps)
        if self.composition is not None:
            raised = self._raised(self.composition, maps, self.combined(parts))
            parts = {branch: self.composition.of_branches(part) for branch, part in parts.items()}
            parts["composition"] = raised
        return parts

    def _raised(self, composition: CompositionMerger, maps: dict[str, Tensor], merged: Tensor | None) -> Tensor:
        """What the composition adds to the map, smoothed, [B, 1, *output_size]."""
        logical = self._calibrated(maps, "logical") if "logical" in maps else None
        surplus = self.resize(maps["composition"])
        return self._smooth(composition.raised(surplus, maps["composition_scores"], merged, logical))

    @in_single_precision
    def forward(self, maps: dict[str, Tensor]) -> Merged:
        """Merge the maps that are present.

        Args:
            maps: Raw maps of the branches, ``"logical"`` and ``"structural"``, [B, 1, h, w] each; of the composition
                ``"composition"`` (surplus of each histogram, [B, M, h, w]) and ``"composition_scores"``, [B, M].

        Raises:
            ValueError: If there is no map.
        """
        merged = self.merge_branches(maps)
        if self.composition is not None and "composition" in maps:
            raised = self._raised(self.composition, maps, merged)
            found: Merged = self.composition(merged, raised, maps["composition_scores"])
            return found
        if merged is None:
            msg = f"There is nothing to merge among {sorted(maps)}; give a map of a branch."
            raise ValueError(msg)
        return Merged(merged.amax(dim=(1, 2, 3)), merged)
